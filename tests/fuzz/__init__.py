"""A fuzzer of archives and tables: ``python -m tests.fuzz --cases N --seed S``.

Every case takes a small archive (or tables file) of some kind and does one of two things to it.

**Damage** (:mod:`tests.fuzz.damage`) is what disks, transfers and people do: flipped bits, cut, missing, inserted,
repeated and swapped bytes, blocks and segments, pieces of other archives. It must be a FormatError on opening,
reading or verifying, and rows that are read must be the right ones. Some are salvaged too: no row may be there that
was not.

**Forgery** (:mod:`tests.fuzz.forge`) is what somebody does who knows the format: counts, sizes, offsets, models,
texts and JSON are changed where they stand, and what follows from them, checksums included, is made to fit. (Only the
checksums of decoded rows are not looked at, in place of computing them.) It may decode to other codes, or be a
FormatError; anything else is a finding.

For both: no other exception, no warning, no more than ten seconds, and no more than 50 MB beside four times the file
with its tables and its largest decoded block. The address space of the process is limited to that while a case runs,
so that memory which is asked for counts, used or not.
"""
