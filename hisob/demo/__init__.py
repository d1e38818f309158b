"""The demo: a district made of one real house.

`reduce` made household.parquet out of the published data (metadata.json says what of it is real), `district` builds
customers out of its different weeks, `world` plays their meters, switches and phones, `summary` says what came of it.
The command is in hisob/commands/demo.py.
"""
