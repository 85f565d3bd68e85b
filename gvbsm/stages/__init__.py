"""The five stages. Each module plans units of work from a workspace and does one unit's work.

Imports nothing, for `--help` lists the stages.
"""

STAGES = {
    "pretrain": "Train the backbones on the real data, or take given weights [squeeze].",
    "measure": "Record the real data's statistics.",
    "synthesis": "Optimise the images until they have the real data's statistics [recover].",
    "relabel": "Store the ensemble's soft labels.",
    "evaluation": "Train and test students.",
}
"""In order, each by the one word that the command, the recipe and the artifacts call it, with its help."""
