"""What goes wrong in reading .npz files and other zip archives that are damaged."""

import struct
import zipfile
import zlib

# zipfile and NumPy raise nearly every type on damaged bytes; an array's header may ask for any
# amount of memory.
DAMAGE = (
  *(OSError, EOFError, ValueError, KeyError, TypeError, IndexError, SyntaxError),
  *(NotImplementedError, RuntimeError, OverflowError, MemoryError),
  *(struct.error, zlib.error, zipfile.BadZipFile),
)
