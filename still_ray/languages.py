r"""Words of other languages as their English twins: ``5\text{ 元}`` is read as ``5 \text{yuan}``, "oder" as "or".

Only words that answers are made of: connectives, units, "no solution". A word that is not listed stays as it is.
"""

import re
from typing import Final

_WITHOUT_SPACES: Final = {
    "or": "或者 或是 或 または 又は 또는", "and": "以及 并且 和 与 及 且 および 그리고", "when": "当 當",
    "no solution": "无解 無解 不存在 해가없다", "infinitely many": "无穷多个 无数个 无穷多",
    "the answer is": "答案是 答案为 答案為 答案 答えは", "per": "每", "per hour": "/时 /時",
    "people": "人", "ways": "种 種",
    "yuan": "元 块钱", "dollars": "美元 달러", "euros": "欧元", "yen": "日元 円", "won": "韩元 원",
    "m": "米 公尺 미터 メートル", "cm": "厘米 公分 센티미터 センチメートル", "mm": "毫米", "dm": "分米",
    "km": "千米 公里 킬로미터", "g": "克 그램 グラム", "kg": "千克 公斤 킬로그램 キログラム", "mg": "毫克",
    "tons": "吨",
    "square": "平方", "cubic": "立方", "liters": "升 公升", "ml": "毫升", "degrees": "度", "celsius": "摄氏度",
    "seconds": "秒 초", "minutes": "分钟 分鐘 분", "hours": "小时 小時 時間 시간", "days": "天", "months": "个月 個月",
    "years": "年 岁 歲", "rad": "弧度", "newtons": "牛顿", "joules": "焦耳", "watts": "瓦特", "volts": "伏特",
    "pascals": "帕斯卡", "hertz": "赫兹",
}  # fmt: skip
"""English words by their twins in scripts that write no spaces, so that they are found inside of any run."""

_MULTIPLIERS: Final = {"万": 4, "萬": 4, "亿": 8, "億": 8, "만": 4, "억": 8}
"""Powers of ten."""

_COUNTERS: Final = (
    "个個개只隻条條本件张張支枝块塊颗顆粒头頭匹棵朵辆輛台臺架艘座间間套双雙对對组組次遍道题題项項步页頁行列层層级級排盒箱袋瓶"
    "杯桶包份片根把盏盞门門班队隊名位明枚冊册匙回"
)
"""What stands between a number and what is counted, which is told by it to be a noun: ``5 个苹果``."""

_NO_NOUN: Final = "以左右上下多余餘半不约約内外"

_WITH_SPACES: Final = {
    "or": "или або oder", "and": "и та und", "if": "если якщо", "when": "при когда", "where": "где де",
    "for": "для für", "m": "м метр метра метров", "cm": "см", "mm": "мм", "km": "км", "dm": "дм", "g": "г", "kg": "кг",
    "mg": "мг", "tons": "т", "seconds": "с сек", "minutes": "мин минут минуты минута", "hours": "ч час часа часов",
    "days": "день дня дней", "years": "год года лет", "liters": "л", "ml": "мл",
    "degrees": "градус градуса градусов", "percent": "процент процента процентов",
    "rubles": "руб рубль рубля рублей", "people": "человек человека", "units": "шт штук штуки раз раза",
    "ways": "способ способа способов вариант варианта вариантов", "newtons": "Н", "joules": "Дж", "watts": "Вт",
    "volts": "В", "hertz": "Гц", "pascals": "Па",
}  # fmt: skip
"""The same for scripts that part words by spaces: whole words only."""

_IN_TEXT: Final = {"or": "ou o", "and": "et y", "if": "si wenn", "where": "wobei", "for": "pour para"}
"""The same for words that are symbols elsewhere: alone in ``\\text{ o }`` only."""

_ALONE: Final = {
    "yes": "是 对 對 正确 да はい 예", "no": "否 不是 错 错误 нет いいえ 아니오",
    "no solution": "нет решений решений нет keine Lösung pas de solution", "none": "无 無",
}  # fmt: skip


def _by_word(table: dict[str, str]) -> dict[str, str]:
    return {word: english for english, words in table.items() for word in words.split()}


_UNSPACED: Final = _by_word(_WITHOUT_SPACES)
_SPACED: Final = _by_word(_WITH_SPACES)
_IN_BRACES: Final = _by_word(_IN_TEXT)
_WHOLE: Final = _by_word(_ALONE) | {"нет решений": "no solution", "keine Lösung": "no solution"}
_RUNS: Final = re.compile("|".join(sorted(_UNSPACED, key=len, reverse=True)))
_SCALED: Final = re.compile(rf"(?<=\d)\s*([{''.join(_MULTIPLIERS)}])")
_COUNTED: Final = re.compile(rf"[{_COUNTERS}](?![{_NO_NOUN}])[\u4e00-\u9fff\uac00-\ud7a3]*(?<![{_NO_NOUN}])")
_FOREIGN: Final = re.compile(r"(?<![^\W\d_])(?<!\\)[^\W\d_]+")
_ASCII: Final = re.compile(
    r"(?<![A-Za-z\\])(?:oder|und)(?![A-Za-z])|(?<=\\text\{ )(?:ou|o|et|y|si|wenn|wobei|pour|para)(?= \})"
)
_DRESS: Final = re.compile(r"\\(?:text|mathrm|textbf|mbox)|[{}$\s。.]")


def in_english(text: str) -> str:
    r"""The text with every listed word of another language as ``\text{its English twin}``."""
    if text.isascii():
        return _ASCII.sub(lambda match: _said(_SPACED.get(match[0]) or _IN_BRACES[match[0]]), text)
    alone = _WHOLE.get(" ".join(_DRESS.sub(" ", text).split()))
    if alone is not None:
        return _said(alone)
    text = _FOREIGN.sub(lambda match: _said(_SPACED[match[0]]) if match[0] in _SPACED else match[0], text)
    text = _SCALED.sub(lambda match: rf" \cdot 10^{{{_MULTIPLIERS[match[1]]}}} ", text)
    text = _RUNS.sub(lambda match: _said(_UNSPACED[match[0]]), text)
    return _COUNTED.sub(lambda _: _said("units"), text)


def _said(english: str) -> str:
    return rf" \text{{ {english} }} "
