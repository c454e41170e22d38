"""SHA-256 of what is small, without hashlib: that loads OpenSSL, which costs every start of a run 3 ms.

For whole files of any size take `hashlib`, which is several times as fast.
"""

try:
    from _sha2 import sha256 as hasher  # Python 3.12 and newer
except ImportError:
    try:
        from _sha256 import sha256 as hasher
    except ImportError:
        from hashlib import sha256 as hasher


def sha256(content: bytes) -> str:
    """Return the SHA-256 of some bytes, as 64 hex digits."""
    return hasher(content).hexdigest()
