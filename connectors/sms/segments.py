"""How many SMS a text takes: GSM 03.38 where its alphabet has every letter, UCS-2 otherwise. 3GPP TS 23.038 and 23.040.

A single message holds 140 octets. A longer text goes in parts, and each gives 6 octets to the header that joins them: 153
characters of 7 bits, or 67 of 16. A character of the extension table takes two places, and neither it nor a surrogate pair is
torn apart between two parts.
"""

from __future__ import annotations

GSM_7 = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
GSM_7_EXTENSION = frozenset("\f^{}\\[~]|€")


def count_segments(text: str) -> tuple[str, int]:
    """The encoding a text needs, `GSM-7` or `UCS-2`, and how many SMS it takes."""
    if GSM_7.issuperset(set(text) - GSM_7_EXTENSION):
        return "GSM-7", _count([2 if c in GSM_7_EXTENSION else 1 for c in text], 160, 153)
    return "UCS-2", _count([2 if ord(c) > 0xFFFF else 1 for c in text], 70, 67)


def _count(places: list[int], single: int, part: int) -> int:
    if sum(places) <= single:
        return 1
    parts, filled = 1, 0
    for size in places:
        if filled + size > part:
            parts, filled = parts + 1, 0
        filled += size
    return parts
