"""What a run found out: records, scores, tables."""
