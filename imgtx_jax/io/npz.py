"""The exceptions that damaged .npz files and other zip archives raise."""

import struct
import tokenize
import zipfile
import zlib

# zipfile and NumPy raise nearly every type on damaged bytes. MemoryError: a damaged header may ask
# for any amount.
DAMAGE = (
  *(OSError, EOFError, ValueError, KeyError, TypeError, IndexError, SyntaxError),
  *(NotImplementedError, RuntimeError, OverflowError, MemoryError),
  *(struct.error, tokenize.TokenError, zlib.error, zipfile.BadZipFile),
)
