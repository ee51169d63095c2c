"""Where the parts of `work`, an array of int64, begin: what the compiled functions hand on."""

LOOK = 11  # bits that are looked up at once; with 10 or 12 no faster
ENTRIES = 1 << LOOK

DONE = 0  # 1 once the pixels are those of libjpeg
HEIGHT, WIDTH, COMPONENTS = 1, 2, 3  # of the frame header
SCAN = 4  # where in the file the entropy-coded bytes begin
JFIF, ADOBE = 5, 6  # 1 if there is such a segment; 1 + its transform
ROWS = 7  # of RGB that are made
COMPONENT = 8  # of component c from COMPONENT + c * FIELDS on:
FIELDS, ID, ACROSS, DOWN, QUANTS, DC, AC, LAST = 8, 0, 1, 2, 3, 4, 5, 6
QUANT = 32  # where in the file each of four quantisation tables begins; 0: there is none
CODES = 36  # the same of the Huffman tables: DC 0, DC 1, AC 0, AC 1
STREAM = 40  # the state of `codes.block` between rows: at, left, bits
HEADER = 48  # all before it is zeroed for each file; what follows serves the next one, too

LIMITS, SHIFTS, LENGTHS = 48, 120, 18  # of each of CODES, by the length of a code: `long_code`
DC_TABLES = 256
AC_TABLES = DC_TABLES + 2 * ENTRIES
SINGLE = AC_TABLES + 2 * ENTRIES  # one table before its entries are paired
SEEN, SEEN_BYTES = SINGLE + ENTRIES, 273  # what each of CODES was made of: bits of a value, bytes
WORK = SEEN + 4 * SEEN_BYTES  # int64 in all

LARGEST = 16_383  # of a coefficient and of a sum: above it libjpeg's vectors wrap around
SLACK = 4_096  # bytes behind those of a scan: a block may ask for 1.4 kB before it is found out
COEFFICIENTS, QUANT_ROWS, CHROMA_ROWS = 0, 128, 320  # in `shorts`, an array of int16
CHROMA_EDGE = 64  # of a row of sums, beside its samples: what vectors may read
