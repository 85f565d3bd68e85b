"""temporary"""

import json

from gvbsm_registry.artifacts import write_text


def write_records(folder, records):
    write_text(folder / "results.json", json.dumps({"records": records}))
