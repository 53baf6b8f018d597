"""JSON-lines files. A bad row is one line that names the file, the line and the reason."""
import json


def read(path, keys):
    """Rows of a JSON-lines file, each an object with a non-empty string under every one of `keys`.

    CRLF, a byte-order mark and blank lines are accepted; anything else raises ValueError("path:line: reason")."""
    rows = []
    with open(path, "rb") as f:
        for number, line in enumerate(f, 1):
            try:
                line = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if not line:
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"an object was expected, not {type(row).__name__}")
                for key in keys:
                    if not isinstance(row.get(key), str) or not row[key]:
                        raise ValueError(f"no text under {key!r}")
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}:{number}: {error}") from None
            rows.append(row)
    if not rows:
        raise ValueError(f"{path}: no rows")
    return rows
