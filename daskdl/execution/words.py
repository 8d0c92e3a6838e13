"""What a client says to the ranks of a run while they work: one word per run, kept in each worker's process."""

from __future__ import annotations

REGROUP, STOP = "regroup", "stop"
_words: dict[str, str] = {}


def put_word(run: str, word: str) -> None:
    """Say a word; it stays until it is taken. After ``STOP`` nothing else counts."""
    if _words.get(run) != STOP:
        _words[run] = word


def word_for(run: str) -> str | None:
    """Return the word that was said to a run, if any."""
    return _words.get(run)


def take_word(run: str) -> None:
    """Forget the word, because it has been obeyed or the run is over."""
    _words.pop(run, None)
