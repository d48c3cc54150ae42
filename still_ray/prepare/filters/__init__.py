"""The filters of `still-ray prepare`: pure rules that look at one row's texts and name why it should be dropped.

Every rule takes time linear in the text. What they share, the hashed words of a text, is in `words`.
"""
