"""Reads texts that vLLM generated, from JSON lines in one of three formats.

{"response": {"body": {"choices": [{"text": ...}]}}, ...}       `vllm run-batch` (also with message.content)
{"prompt": ..., "outputs": [{"text": ...}, ...]}                the fields of vLLM's RequestOutput
{"text": ...}                                                   a text alone, with its prompt
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ascend_cpt.errors import DataError
from ascend_cpt.strict_json import JsonError, parse_json

MAX_LINE_BYTES = 16 << 20


def read_vllm(path: Path) -> Iterator[str | None]:
    """Yield the texts in a file, and None for each request that failed.

    Raises:
        DataError: the file cannot be read, or a line has none of the formats.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        yield from _read_line(parse_json(line, max_bytes=MAX_LINE_BYTES))
                    except JsonError as error:
                        raise DataError(f"{path}:{number}: {error}; correct or remove this line") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _read_line(record: Any) -> Iterator[str | None]:
    if not isinstance(record, dict):
        raise JsonError("is not a JSON object")
    if "response" in record:
        response = record["response"]
        if record.get("error") or not isinstance(response, dict) or response.get("status_code", 200) != 200:
            yield None
            return
        body = response.get("body")
        choices = body.get("choices") if isinstance(body, dict) else None
        if not isinstance(choices, list):
            raise JsonError("has no response.body.choices")
        for choice in choices:
            text = choice.get("text") if isinstance(choice, dict) else None
            if text is None and isinstance(choice, dict) and isinstance(choice.get("message"), dict):
                text = choice["message"].get("content")
            yield _check_text(text, "choices[].text or choices[].message.content")
    elif "outputs" in record:
        prompt = _check_text(record.get("prompt") or "", "prompt")
        outputs = record["outputs"]
        if not isinstance(outputs, list):
            raise JsonError("outputs is not a list")
        for output in outputs:
            yield prompt + _check_text(output.get("text") if isinstance(output, dict) else None, "outputs[].text")
    else:
        yield _check_text(record.get("text"), "text")


def _check_text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise JsonError(f"has no text in {name}")
    return value
