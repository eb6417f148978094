"""The one table of what a request may ask for. Checked at the door, before anything is allocated."""

BODY_BYTES = 32 * 2**20  # a 128k-token prompt as JSON integers is about 1 MiB; images travel as base64
JSON_DEPTH = 64
BATCH = 4096  # prompts in one request
N = 128  # samples of one prompt
STOP_STRINGS = 32
STOP_STRING_CHARS = 512
STOP_TOKEN_IDS = 256
STOP_REGEX_CHARS = 512  # of all patterns of a sequence; they are one automaton
STOP_REGEX_STATES = 255  # so that a state is a byte
STOP_REGEX_WORK = 5_000  # elementary steps of building it: a few milliseconds, in which no stream goes on
STOP_REGEX_KINDS = 64  # different such automata in one request
LOGIT_BIAS = 4096
TOP_LOGPROBS = 128
TOKEN_IDS_LOGPROB = 1024
MAX_NEW_TOKENS = 2**24  # far above any context; keeps sums inside 32 bits
GRAMMAR_CHARS = 1 << 18  # a regex, schema or grammar longer than this is refused unread
GRAMMAR_STATES = (1 << 15) - 1  # of an automaton over bytes: state numbers fit 16 bits, tables 16 MiB
GRAMMAR_WORK = 2_000_000  # elementary steps of building one, about a second
SEGMENTS = 1024  # of one chain
CHOICES = 1024  # strings of which an answer must be one
MESSAGES = 4096  # chat turns
RID_CHARS = 256
PARENTS = 16  # of a request, that its place in the queue depends on
NAMES = 1 << 16  # of requests, that are remembered for those that continue them
