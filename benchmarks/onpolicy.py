"""Text that a smaller model writes, for `recover --text`: onpolicy.py MODEL OUT.jsonl WINDOWS."""

import json
import sys
from pathlib import Path

from pruner_zero.calibration.self_text import self_windows
from pruner_zero.models.load import load_model

model = load_model(sys.argv[1], "bfloat16")
windows = self_windows(model, int(sys.argv[3]), 512, 1)
written = model.tokenizer.batch_decode(windows.tokens.tolist(), skip_special_tokens=True)
Path(sys.argv[2]).write_text("".join(json.dumps({"text": text}) + "\n" for text in written))
