/* Words and hashes of documents: the inner loops of words/kernel.py, which has the same functions in Python.
 *
 * Plain C99 without intrinsics, so that any compiler for any processor can build it. Texts are UTF-8.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define MERSENNE ((1ULL << 61) - 1)

/* Classes of the characters of the Basic Multilingual Plane, from kernel.py. */
/* `simple` of a byte: what an ASCII letter becomes, or one of these. */
enum { STOP = 0, NUMBER = 1 };
enum { FILTER_BITS = 1 << 15, MAX_CONTRACTION = 10 }; /* shouldntve has 10 letters */
enum { OTHER = 0, SEPARATOR = 1, DIGIT = 2, IDEOGRAPH = 4 };

typedef struct {
    uint32_t key_begin, key_length, value_begin, value_length; /* in `bytes`; a free slot has length 0 */
    uint64_t hash;
} slot;

/* What kernel.py has split into words: the text of a chunk -> its words, each followed by a space. */
typedef struct {
    const uint8_t *classes;
    uint8_t simple[256];
    slot *slots;
    uint64_t mask, num_entries;
    uint8_t *bytes;
    uint64_t num_bytes, capacity;
    uint64_t contractions[FILTER_BITS / 64]; /* a bit for each value of `filter_word` of a short key */
} table;

static uint64_t rotate(uint64_t x, int bits) { return (x << bits) | (x >> (64 - bits)); }

static uint64_t read64(const uint8_t *p) { /* both kinds of supported processors are little-endian */
    uint64_t value;
    memcpy(&value, p, 8);
    return value;
}

static uint64_t read32(const uint8_t *p) {
    uint32_t value;
    memcpy(&value, p, 4);
    return value;
}

static const uint64_t P1 = 0x9E3779B185EBCA87ULL, P2 = 0xC2B2AE3D27D4EB4FULL, P3 = 0x165667B19E3779F9ULL,
                      P4 = 0x85EBCA77C2B2AE63ULL, P5 = 0x27D4EB2F165667C5ULL;

static uint64_t mix_lane(uint64_t lane, uint64_t input) { return rotate(lane + input * P2, 31) * P1; }

/* XXH64 with seed 0. */
static uint64_t hash64(const uint8_t *p, uint64_t length) {
    const uint8_t *end = p + length;
    uint64_t h;
    if (length >= 32) {
        uint64_t a = P1 + P2, b = P2, c = 0, d = 0 - P1;
        for (; end - p >= 32; p += 32) {
            a = mix_lane(a, read64(p));
            b = mix_lane(b, read64(p + 8));
            c = mix_lane(c, read64(p + 16));
            d = mix_lane(d, read64(p + 24));
        }
        h = rotate(a, 1) + rotate(b, 7) + rotate(c, 12) + rotate(d, 18);
        h = (h ^ mix_lane(0, a)) * P1 + P4;
        h = (h ^ mix_lane(0, b)) * P1 + P4;
        h = (h ^ mix_lane(0, c)) * P1 + P4;
        h = (h ^ mix_lane(0, d)) * P1 + P4;
    } else {
        h = P5;
    }
    h += length;
    for (; end - p >= 8; p += 8) h = rotate(h ^ mix_lane(0, read64(p)), 27) * P1 + P4;
    if (end - p >= 4) {
        h = rotate(h ^ read32(p) * P1, 23) * P2 + P3;
        p += 4;
    }
    for (; p < end; p++) h = rotate(h ^ *p * P5, 11) * P1;
    h = (h ^ h >> 33) * P2;
    h = (h ^ h >> 29) * P3;
    return h ^ h >> 32;
}

/* Number of the bit for a word of 1 to 10 bytes. At least 10 bytes can be read at `word`. */
static uint64_t filter_word(const uint8_t *word, uint64_t length) {
    uint64_t first = read64(word) << (length < 8 ? 64 - 8 * length : 0);
    uint64_t rest = length > 8 ? word[length - 1] : 0;
    return (first ^ length ^ rest << 8) * P1 >> 49;
}

static slot *find_slot(const table *t, const uint8_t *key, uint32_t length, uint64_t hash) {
    for (uint64_t k = hash & t->mask;; k = (k + 1) & t->mask) {
        slot *s = &t->slots[k];
        if (s->key_length == 0) return s;
        if (s->hash == hash && s->key_length == length && memcmp(t->bytes + s->key_begin, key, length) == 0) return s;
    }
}

EXPORT table *create_table(const uint8_t *classes, uint64_t num_slots, uint64_t capacity) {
    table *t = calloc(1, sizeof *t);
    if (t == NULL) return NULL;
    t->classes = classes;
    for (int c = 0; c < 128; c++) {
        int is_letter = classes[c] != SEPARATOR && classes[c] != DIGIT;
        t->simple[c] = classes[c] == DIGIT ? NUMBER : !is_letter ? STOP : c >= 'A' && c <= 'Z' ? c + 32 : c;
    }
    t->mask = num_slots - 1;
    t->slots = calloc(num_slots, sizeof *t->slots);
    t->bytes = malloc(capacity);
    t->capacity = capacity;
    if (t->slots == NULL || t->bytes == NULL) return NULL;
    return t;
}

EXPORT void clear_table(table *t) {
    memset(t->slots, 0, (t->mask + 1) * sizeof *t->slots);
    memset(t->contractions, 0, sizeof t->contractions);
    t->num_entries = t->num_bytes = 0;
}

/* Add an entry. Return 0 if the table is full. */
EXPORT int add_entry(table *t, const uint8_t *key, uint32_t key_length, const uint8_t *value, uint32_t value_length) {
    uint64_t hash = hash64(key, key_length);
    slot *s = find_slot(t, key, key_length, hash);
    if (s->key_length) return 1;
    if (2 * t->num_entries > t->mask || t->capacity - t->num_bytes < (uint64_t)key_length + value_length) return 0;
    if (key_length <= MAX_CONTRACTION) {
        uint8_t word[MAX_CONTRACTION] = {0};
        memcpy(word, key, key_length);
        uint64_t bit = filter_word(word, key_length);
        t->contractions[bit / 64] |= 1ULL << bit % 64;
    }
    s->hash = hash;
    s->key_begin = t->num_bytes;
    s->key_length = key_length;
    memcpy(t->bytes + t->num_bytes, key, key_length);
    t->num_bytes += key_length;
    s->value_begin = t->num_bytes;
    s->value_length = value_length;
    memcpy(t->bytes + t->num_bytes, value, value_length);
    t->num_bytes += value_length;
    t->num_entries++;
    return 1;
}

typedef struct {
    const table *table;
    const uint8_t *text;
    uint8_t *out;
    int64_t capacity, length; /* of `out` */
    int64_t *missing;         /* begin and end of chunks that are not in the table */
    int64_t max_missing, num_missing;
} output;

/* Append the words of a chunk that needs the table. Return 0 if `out` is full. */
static int look_up(output *o, const uint8_t *key, int64_t length, int64_t begin, int64_t end) {
    const slot *s = find_slot(o->table, key, length, hash64(key, length));
    if (s->key_length == 0) {
        if (o->num_missing < o->max_missing) {
            o->missing[2 * o->num_missing] = begin;
            o->missing[2 * o->num_missing + 1] = end;
        }
        o->num_missing++;
        return 1;
    }
    if (o->capacity - o->length < s->value_length) return 0;
    memcpy(o->out + o->length, o->table->bytes + s->value_begin, s->value_length);
    o->length += s->value_length;
    return 1;
}

/* Append the number at `k`, and return where it ends. */
static int64_t add_number(output *o, int64_t k, int64_t end) {
    const uint8_t *text = o->text, *simple = o->table->simple;
    while (k < end && simple[text[k]] == NUMBER) k++;
    if (k + 1 < end && (text[k] == '.' || text[k] == ',') && simple[text[k + 1]] == NUMBER)
        for (k++; k < end && simple[text[k]] == NUMBER;) k++;
    o->out[o->length++] = '0';
    return k;
}

/* Append the words of ASCII text. Return 0 if `out` is full. */
static int add_ascii(output *o, int64_t begin, int64_t end) {
    const uint8_t *text = o->text, *simple = o->table->simple;
    const uint64_t *contractions = o->table->contractions;
    int64_t k = begin;
    while (k < end) {
        int64_t word = o->length, word_begin = k;
        int has_digit = 0;
        if (o->capacity - o->length < end - k + MAX_CONTRACTION) return 0;
        uint8_t *out = o->out + word;
        while (k < end) {
            uint8_t c = simple[text[k]];
            if (c > NUMBER) {
                *out++ = c;
                k++;
                continue;
            }
            if (c == STOP) break;
            o->length = out - o->out;
            k = add_number(o, k, end);
            out++;
            has_digit = 1;
        }
        int64_t length = out - (o->out + word);
        o->length = word + length;
        if (length == 0) {
            k++;
            continue;
        }
        int is_key = has_digit && length > 1;
        if (!has_digit && length > 1 && length <= MAX_CONTRACTION) {
            uint64_t bit = filter_word(o->out + word, length);
            if (contractions[bit / 64] >> bit % 64 & 1)
                is_key = find_slot(o->table, o->out + word, length, hash64(o->out + word, length))->key_length > 0;
        }
        if (!is_key) {
            o->out[o->length++] = ' ';
            continue;
        }
        uint8_t key[256];
        o->length = word;
        if (length > (int64_t)sizeof key) { /* such a word is looked up as it is in the text */
            if (!look_up(o, text + word_begin, k - word_begin, word_begin, k)) return 0;
        } else {
            memcpy(key, o->out + word, length);
            if (!look_up(o, key, length, word_begin, k)) return 0;
        }
    }
    return 1;
}

/* Return where the next byte above 127 is, or `length`. */
static int64_t find_wide(const uint8_t *text, int64_t k, int64_t length) {
    for (; k + 8 <= length; k += 8)
        if (read64(text + k) & 0x8080808080808080ULL) break;
    while (k < length && text[k] < 128) k++;
    return k;
}

/* Return the code point at `k` of a valid UTF-8 text if it has three bytes, or 0. */
static uint32_t read_wide(const uint8_t *text, int64_t k, int64_t length) {
    if (text[k] >> 4 != 14 || k + 2 >= length) return 0;
    return (uint32_t)(text[k] & 15) << 12 | (uint32_t)(text[k + 1] & 63) << 6 | (text[k + 2] & 63);
}

/* Write the words of a text, each followed by a space. Return their total length, or -1 if `out` is too small.
 *
 * `num_missing` is the number of chunks that are not in the table, of which the first ones are listed in `missing`.
 */
EXPORT int64_t write_words(const table *t, const uint8_t *text, int64_t length, uint8_t *out, int64_t capacity,
                           int64_t *missing, int64_t max_missing, int64_t *num_missing) {
    output o = {t, text, out, capacity, 0, missing, max_missing, 0};
    int64_t k = 0;
    while (k < length) {
        int64_t begin = find_wide(text, k, length);
        while (begin < length && begin > k && text[begin - 1] > ' ') begin--;
        if (!add_ascii(&o, k, begin)) return -1;
        if (begin == length) break;
        int is_ascii = 1, class = OTHER;
        for (k = begin; k < length && text[k] > ' '; k++) {
            if (text[k] < 128) continue;
            uint32_t code = read_wide(text, k, length);
            class = code ? t->classes[code] : OTHER;
            if (class == IDEOGRAPH || class == SEPARATOR) break;
            is_ascii = 0;
            class = OTHER;
        }
        if (k > begin && !(is_ascii ? add_ascii(&o, begin, k) : look_up(&o, text + begin, k - begin, begin, k)))
            return -1;
        if (class == IDEOGRAPH) {
            if (o.capacity - o.length < 4) return -1;
            memcpy(out + o.length, text + k, 3);
            out[o.length + 3] = ' ';
            o.length += 4;
        }
        k += class == OTHER ? 1 : 3;
    }
    *num_missing = o.num_missing;
    return o.length;
}

/* Find the word boundaries: write the begin of each word and, behind the last one, the length. Return their number. */
static int64_t split_words(const uint8_t *words, int64_t length, int64_t *begins) {
    int64_t count = 0;
    for (int64_t k = 0; k < length; k++) {
        const uint8_t *space = memchr(words + k, ' ', length - k);
        begins[count++] = k;
        k = space - words;
    }
    begins[count] = length;
    return count;
}

/* Write the XXH64 of each n-gram of words. Return their number. `begins` has room for length / 2 + 1 numbers. */
EXPORT int64_t hash_ngrams(const uint8_t *words, int64_t length, int64_t n, int64_t *begins, uint64_t *hashes) {
    int64_t count = split_words(words, length, begins);
    for (int64_t k = 0; k + n <= count; k++) hashes[k] = hash64(words + begins[k], begins[k + n] - 1 - begins[k]);
    return count < n ? 0 : count - n + 1;
}

static uint64_t permute(uint64_t shingle, uint64_t a, uint64_t b) {
    uint64_t x = shingle * a + b;
    x = (x & MERSENNE) + (x >> 61);
    return x >= MERSENNE ? x - MERSENNE : x;
}

enum { UNFILTERED = 64 }; /* shingles before a comparison is likely to exclude the next one */

/* Write for each hash function j the minimum over the shingles of (shingle * a[j] + b[j]) % (2^61 - 1), modulo 2^64
 * inside the parentheses, & mask.
 *
 * Without a mask, most shingles are excluded by one comparison: (shingle * a + b + 8) * 8, modulo 2^64, orders them like
 * the result, except for differences below 8.
 */
EXPORT void write_minima(const uint64_t *shingles, int64_t count, const uint64_t *a, const uint64_t *b,
                         int64_t num_hashes, uint64_t mask, uint64_t *minima) {
    for (int64_t j = 0; j < num_hashes; j++) {
        uint64_t best = ~0ULL, limit, factor = a[j], summand = b[j];
        int64_t k = 0, head = ~mask == 0 && count > UNFILTERED ? UNFILTERED : count;
        for (; k < head; k++) {
            uint64_t value = permute(shingles[k], factor, summand) & mask;
            best = value < best ? value : best;
        }
        uint64_t scaled = factor << 3, added = (summand + 8) << 3;
        limit = best + 8 >= 1ULL << 61 ? ~0ULL : (best + 8) << 3;
        while (k < count) {
            for (; k + 4 <= count; k += 4) {
                int below = shingles[k] * scaled + added <= limit;
                below |= shingles[k + 1] * scaled + added <= limit;
                below |= shingles[k + 2] * scaled + added <= limit;
                below |= shingles[k + 3] * scaled + added <= limit;
                if (below) break;
            }
            for (int64_t end = k + 4 < count ? k + 4 : count; k < end; k++) {
                uint64_t value = permute(shingles[k], factor, summand);
                best = value < best ? value : best;
            }
            limit = best + 8 >= 1ULL << 61 ? ~0ULL : (best + 8) << 3;
        }
        minima[j] = best;
    }
}

/* Do all of the above for a text: return the number of n-grams, whose minima are written, or -1 - num_missing if the
 * table lacks chunks, or INT64_MIN if `out` is too small. `begins` and `hashes` have room for capacity / 2 + 1 numbers.
 */
EXPORT int64_t write_signature(const table *t, const uint8_t *text, int64_t length, uint8_t *out, int64_t capacity,
                               int64_t *missing, int64_t max_missing, int64_t n, int64_t *begins, uint64_t *hashes,
                               const uint64_t *a, const uint64_t *b, int64_t num_hashes, uint64_t *minima) {
    int64_t num_missing = 0;
    int64_t num_bytes = write_words(t, text, length, out, capacity, missing, max_missing, &num_missing);
    if (num_bytes < 0) return INT64_MIN;
    if (num_missing) return -1 - num_missing;
    int64_t count = hash_ngrams(out, num_bytes, n, begins, hashes);
    if (count) write_minima(hashes, count, a, b, num_hashes, ~0ULL, minima);
    return count;
}

/* Find the windows of words with at least `weight` that occur in `known` (sorted). A word weighs 2, an ideograph 1.
 *
 * `filter` has a bit for each of 2^filter_bits remainders of hashes that occur. Return the number of windows found;
 * `first` gets the begin and length of the first one in `words` and its index in `known`. With `known_count` 0, all
 * windows count, and their hashes and begins are written to `all` and `begins`.
 */
EXPORT int64_t find_windows(const table *t, const uint8_t *words, int64_t length, int64_t weight, int64_t *begins,
                            const uint64_t *known, int64_t known_count, const uint8_t *filter, int filter_bits,
                            int64_t *first, uint64_t *all) {
    int64_t count = split_words(words, length, begins), found = 0, after = 0, sum = 0;
    for (int64_t k = 0; k < count; k++) {
        while (after < count && sum < weight) {
            uint32_t code = begins[after + 1] - begins[after] == 4 ? read_wide(words, begins[after], length) : 0;
            sum += code && t->classes[code] == IDEOGRAPH ? 1 : 2;
            after++;
        }
        if (sum < weight) break;
        uint64_t hash = hash64(words + begins[k], begins[after] - 1 - begins[k]);
        if (all != NULL) {
            all[found++] = hash;
        } else if (filter[(hash & ((1ULL << filter_bits) - 1)) >> 3] >> (hash & 7) & 1) {
            int64_t low = 0, high = known_count;
            while (low < high) {
                int64_t middle = (low + high) / 2;
                if (known[middle] < hash) low = middle + 1;
                else high = middle;
            }
            if (low < known_count && known[low] == hash && found++ == 0) {
                first[0] = begins[k];
                first[1] = begins[after] - 1 - begins[k];
                first[2] = low;
            }
        }
        uint32_t code = begins[k + 1] - begins[k] == 4 ? read_wide(words, begins[k], length) : 0;
        sum -= code && t->classes[code] == IDEOGRAPH ? 1 : 2;
    }
    return found;
}
