"""Join POPE's answers with their questions without ever shifting one.

The official script joins by place. A line that cannot be read therefore keeps its place; where a place is not certain, or
where there are more or fewer answers than questions, answers need the question_id. What an answer carries besides (question,
prompt, image, label) is compared with its question, however the two were joined.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prunehal.benchmarks.answer_rows import Asked, Taken, WrongRows, answer_in, compared, one_key, only_truth, words
from prunehal.benchmarks.pope.files import Place, Question, again
from prunehal.benchmarks.yes_or_no import first_word
from prunehal.files.records import some

__all__ = ["Joined", "join", "official_answer"]

_ORDER_KEYS = ("id", "qid", "idx", "index")  # row numbers, which must rise where answers are joined by order
_OFFICIAL_NO = {"No", "not", "no"}


@dataclass(slots=True)
class Joined:
    """Answers with their questions.

    Attributes:
        by: ``question_id`` or ``place``.
        pairs: the usable ones.
        problems: of single lines, which may be skipped.
        wrong: what is wrong with the file as a whole, so that no line of it can be trusted.
        compared: of question, image and label those that every usable answer carries.
        n_again: answers to a question_id that had one.
    """

    by: str
    pairs: list[tuple[Question, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    compared: set[str] = field(default_factory=lambda: {"question", "image", "label"})
    n_again: int = 0


def official_answer(text: str) -> str:
    """Return ``"no"`` or ``"yes"`` by the official rule; see `prunehal.benchmarks.pope.score.parse_answer`.

    >>> official_answer("There is no dog."), official_answer("NO")
    ('no', 'yes')
    """
    return "yes" if _OFFICIAL_NO.isdisjoint(text.split(".", 1)[0].replace(",", "").split(" ")) else "no"


def join(asked: list[Place], given: list[Place], answer_key: str | None = None) -> Joined:
    """Join questions and answers: by question_id when every answer has one, otherwise by place.

    Args:
        asked: from `read_questions`.
        given: from `read_places`.
        answer_key: the key that holds the answers, where several could.

    Returns:
        The usable pairs, and what is wrong with the others (reading the files has reported unreadable lines and unusable
            questions already).

    >>> question = Question(7, "a.jpg", "Is there a dog?", "yes")
    >>> join([Place(1, question)], [Place(1, {"answer": "Yes"})]).pairs[0][1]
    'Yes'
    >>> join([Place(1, question)], [Place(1, {"answer": "Yes"}), Place(2, {"answer": "No"})]).wrong
    ['2 answers without question_id to 1 questions; expected one for each, in order; Fix: add question_id, or what is missing']
    """
    answers = [place.content for place in given if place.readable]
    by_id = bool(answers) and all("question_id" in answer for answer in answers)
    joined = Joined("question_id" if by_id else "place")
    questions = frozenset(words(place.content.text) for place in asked if place.content is not None)
    able: dict[tuple[str, ...], str] = {}
    answered: list[tuple[Mapping[str, Any], Taken, str | None]] = []
    for question, answer in (_by_id if by_id else _by_place)(asked, given, joined):
        try:
            taken = _answer(question, answer.content, questions, answer_key, joined)
            joined.pairs.append((question, taken.text))
            able.setdefault(taken.able, f"line {answer.line}")
            answered.append((answer.content, taken, question.label))
        except WrongRows as error:
            joined.wrong.append(f"line {answer.line}: {error}")
        except ValueError as error:
            joined.problems.append(f"line {answer.line}: {error}")
    joined.wrong += one_key(able)
    if answer_key is None:
        joined.wrong += only_truth(answered)
    if not joined.pairs:
        joined.compared = set()
    return joined


def _by_place(asked: list[Place], given: list[Place], joined: Joined) -> Iterator[tuple[Question, Place]]:
    torn = next((place.line for place in given if not place.readable), None)
    if len(asked) != len(given):
        unread = f" (line {torn} cannot be read and may hold several)" if torn else ""
        joined.wrong.append(
            f"{len(given)} answers without question_id to {len(asked)} questions{unread}; expected one for each, in order; "
            "Fix: add question_id, or what is missing"
        )
    elif not (_one_each(asked) and _one_each(given)):
        joined.wrong.append(
            f"line {torn or 1}: where one line holds several objects and one cannot be read, places are not certain; expected "
            "question_id in each answer; Fix: add it, or the object"
        )
    elif (key := _out_of_order(given)) is not None:
        joined.wrong.append(
            f"{key} does not rise from answer to answer; expected the order of the questions, as answers lack question_id; "
            "Fix: name it question_id if it is that, or sort the answers"
        )
    else:
        for question, answer in zip(asked, given, strict=True):
            if question.content is not None and answer.readable:
                yield question.content, answer


def _one_each(places: list[Place]) -> bool:
    """Whether every unreadable place has a line of its own, so that its rank among the others is known."""
    on_line = Counter(place.line for place in places)
    return all(place.readable or on_line[place.line] == 1 for place in places)


def _out_of_order(given: list[Place]) -> str | None:
    """Return a key whose values look like row numbers, as all differ, but do not rise; None if there is none."""
    answers = [place.content for place in given if place.readable]
    for key in _ORDER_KEYS:
        numbers = [int(value) for answer in answers if re.fullmatch(r"[0-9]{1,18}", str(value := answer.get(key)))]
        if len(numbers) == len(set(numbers)) == len(answers) and numbers != sorted(numbers):
            return key
    return None


def _by_id(asked: list[Place], given: list[Place], joined: Joined) -> Iterator[tuple[Question, Place]]:
    known = {str(place.content.question_id): place for place in asked if place.content is not None}
    ids = some(known) or "none, as no question can be used"
    unusable = len(known) < len(asked)  # an id that is not known may be that of such a question
    first: dict[str, int] = {}
    for answer in given:
        if not answer.readable:
            continue
        name = answer.content["question_id"]
        key = str(name)
        if key not in known:
            problem = f"line {answer.line}: unknown question_id {name!r}; expected one of {ids}"
            (joined.problems if unusable else joined.wrong).append(problem)
        elif key in first:
            joined.n_again += 1
            joined.problems.append(f"line {answer.line}: {again(name, first[key])}")
        else:
            first[key] = answer.line
            yield known[key].content, answer
    for key, place in known.items():
        if key not in first:
            joined.problems.append(f"no answer to question_id {key} (question on line {place.line}); expected one for each")


def _answer(question: Question, row: Mapping[str, Any], others: frozenset[str], key: str | None, joined: Joined) -> Taken:
    """Return the answer of a row, which must be one to this question."""
    asked = Asked(f"question_id {question.question_id!r}", question.text, question.image, question.label, others)
    taken = answer_in(row, asked, key, _read)
    carried = compared(row, asked, taken.key)
    if "question_id" in row and str(row["question_id"]) != str(question.question_id):
        raise WrongRows(
            f"question_id is {row['question_id']!r}; expected {question.question_id!r} at this place; Fix: sort the answers"
        )
    joined.compared &= carried
    return taken


def _read(text: str) -> Hashable:
    """Return what the official and the strict rule read in an answer; keys that are equal in both give the same scores."""
    return official_answer(text), first_word(text)
