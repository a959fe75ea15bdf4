"""The code of the notebooks, by their numbers; files of the same name hold the same kind of thing in each.

``compare`` (numbers), ``in_words`` (sentences), ``figures``, ``tables``, ``rows`` (what is made and stored). ``claims``
corrects what all notebooks claim, ``repetition`` counts the paper's controls both ways, ``headline`` and ``readme`` write the
README's tables.
"""
