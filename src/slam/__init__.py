"""Speech language models on one GPU in a day: speech → units → TWIST → DPO → scores and sound.

Importing this package costs nothing: torch and transformers are imported by the stage that needs them,
when it starts to work.
"""

__version__ = "0.1.0"
