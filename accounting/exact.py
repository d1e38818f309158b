"""Whole-number arithmetic that stays exact where a product outgrows 64 bits.

Compiled integers wrap at 64 bits in silence. The bill has two wide products: the register at a boundary
(usage · time // time) and the test against a power (usage · 3,600,000,000 > power · time).
"""

from __future__ import annotations

from accounting.compiled import compiled, rule

INT64_MAX = 2**63 - 1
US_PER_HOUR = 3_600_000_000


@compiled
def multiply_divide(a: int, b: int, c: int) -> int:
    """floor(a · b / c) for a, b ≥ 0 and 0 < c < 2^62, exact whatever a · b is; the result must fit in 64 bits."""
    if a == 0 or b <= INT64_MAX // a:
        return a * b // c
    whole, rest = a // c, a % c
    quotient, remainder = 0, 0
    for bit in range(62, -1, -1):  # long multiplication, bit by bit, dividing as it goes
        quotient, remainder = quotient * 2, remainder * 2
        if remainder >= c:
            quotient, remainder = quotient + 1, remainder - c
        if (b >> bit) & 1:
            remainder += rest
            if remainder >= c:
                quotient, remainder = quotient + 1, remainder - c
    return whole * b + quotient


@rule
def beyond_power(usage_wh: int, power_w: int, duration_us: int) -> bool:
    """Whether usage · 3,600,000,000 > power · duration: more than that power could draw in the time."""
    if usage_wh < 2**31 and power_w < 2**22 and duration_us < 2**40:
        return usage_wh * US_PER_HOUR > power_w * duration_us
    hours = duration_us // US_PER_HOUR
    if hours > 0 and power_w > INT64_MAX // hours:
        return False
    rest_wh = multiply_divide(power_w, duration_us % US_PER_HOUR, US_PER_HOUR)
    return power_w * hours <= INT64_MAX - rest_wh and usage_wh > power_w * hours + rest_wh
