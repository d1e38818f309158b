"""What a new home is given: tariffs-uz.csv (by the contract of `tariff`) and policies.json (of `policy`).

See hisob/homes.py.
"""
