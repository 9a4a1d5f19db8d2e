"""Rare token neurons: the arithmetic behind the numbered notebooks."""

import warnings

warnings.filterwarnings("ignore", "IProgress not found")  # tqdm asks for widgets; progress is plain text here
