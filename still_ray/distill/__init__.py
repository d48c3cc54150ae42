"""Collecting a teacher's long-form thoughts from an OpenAI-compatible endpoint, each answer exactly once.

    questions ─► a worker of many ─────► budget ─► pace ─► journal: "begun" ─► POST /chat/completions
                      ▲                                                              │
                      └──── back-off ◄── journal: "failed" ◄── 429, 5xx, lost ◄──────┤
                                                                                     ▼
         raw.parquet, demonstrations.parquet, report.json ◄── journal: "judged" ◄── journal: "answered", on disk

The journal is the only state. Everything else in the folder is made from it, and may be made again.
"""
