// One pass over θ, F_f and F_r of many parameters for one rule: rule, comparison, count, what is kept of the old values. After
// what is said in piece.h:
//   PIECE                 how many weights one thread edits at a time, at most; a multiple of BLOCK
//   RULE                  statements that return θ' from theta, forget, reference, number[] and the answers at i; `odd |= …`
//                         refuses
namespace {

constexpr int BLOCK = 512;  // a block of each array stays in the innermost cache

inline Wide rule(Wide theta, Wide forget, Wide reference, const double* number, const Answers& answers, std::int64_t i,
                 unsigned& odd) {
    (void)odd, (void)answers, (void)i;
    RULE
}

// Integers of 16 or 32 bits, a vector at a time in lanes of 32: read, compared, and those of a mask stored side by side.
// A whole vector is stored: the next overwrites what is too much.
#if defined(__AVX512F__)
constexpr int LANES = 16;
using Vector = __m512i;
using Mask = std::uint16_t;
inline Vector read(const BITS* from) {
    return sizeof(BITS) == 4 ? _mm512_loadu_si512(from)
                             : _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
inline Mask differ(Vector a, Vector b) { return Mask(_mm512_cmpneq_epi32_mask(a, b)); }
inline void store(BITS* to, Mask mask, Vector a) {
    const Vector packed = _mm512_maskz_compress_epi32(mask, a);
    if (sizeof(BITS) == 4)
        _mm512_storeu_si512(to, packed);
    else
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(packed));
}
#elif defined(__AVX2__)
constexpr int LANES = 8;
using Vector = __m256i;
using Mask = std::uint8_t;
struct Orders {  // for each mask, its lanes in order
    alignas(32) std::int32_t lane[256][LANES];
    constexpr Orders() : lane() {
        for (int mask = 0; mask < 256; ++mask)
            for (int i = 0, n = 0; i < LANES; ++i)
                if (mask >> i & 1) lane[mask][n++] = i;
    }
};
constexpr Orders ORDERS;
inline Vector read(const BITS* from) {
    return sizeof(BITS) == 4 ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))
                             : _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
inline Mask differ(Vector a, Vector b) {
    return Mask(~_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(a, b))));
}
inline void store(BITS* to, Mask mask, Vector a) {
    const Vector order = _mm256_load_si256(reinterpret_cast<const __m256i*>(ORDERS.lane[mask]));
    const Vector packed = _mm256_permutevar8x32_epi32(a, order);
    if (sizeof(BITS) == 4) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), packed);
    } else {
        const __m128i low = _mm256_castsi256_si128(packed), high = _mm256_extracti128_si256(packed, 1);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_packus_epi32(low, high));
    }
}
#endif

// Writes the values of `old` at which `fresh` differs to `values`, and a bit for each place to `mask`.
inline int keep(const BITS* old, const BITS* fresh, int length, std::uint8_t* mask, BITS* values) {
    int kept = 0;
    int i = 0;
#if defined(__AVX2__)
    if (sizeof(BITS) <= 4)
        for (; i + LANES <= length; i += LANES) {
            const Vector was = read(old + i);
            const Mask word = differ(was, read(fresh + i));
            std::memcpy(mask + i / 8, &word, sizeof word);
            store(values + kept, word, was);
            kept += __builtin_popcount(word);
        }
#endif
    for (; i < length; i += 8) {
        unsigned byte = 0;
        const int end = i + 8 < length ? i + 8 : length;
        for (int j = i; j < end; ++j) {
            const unsigned differs = old[j] != fresh[j];
            byte |= differs << (j - i);
            values[kept] = old[j];
            kept += differs;
        }
        mask[i / 8] = std::uint8_t(byte);
    }
    return kept;
}

constexpr std::int64_t LINE = 64;
constexpr std::int64_t lines(std::int64_t bytes) { return (bytes + LINE - 1) / LINE * LINE; }

struct Outcome {  // of a piece
    std::int64_t at, kept;  // where its old values are, and how many: as many as have other bits than before
    std::int64_t odd;       // whether torch must do it; some of its blocks may then have been overwritten
};

// Copies whole lines past the cache: what is kept is not read again soon.
inline void stream(std::uint8_t* to, const void* from, std::int64_t bytes) {
#if defined(__AVX2__)
    const auto* source = static_cast<const std::uint8_t*>(from);
    for (std::int64_t i = 0; i < bytes; i += 32)
        _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i),
                            _mm256_load_si256(reinterpret_cast<const __m256i*>(source + i)));
#else
    std::memcpy(to, from, std::size_t(bytes));
#endif
}

// The old values of a piece, on their way to memory: a bit for each weight, then the values, a line at a time.
struct Record {
    static constexpr int PER_LINE = LINE / sizeof(BITS);
    alignas(LINE) std::uint8_t mask[lines(PIECE / 8)];
    alignas(LINE) BITS values[PER_LINE + BLOCK + PER_LINE];
    std::uint8_t *begin, *end;  // in memory; null when nothing is to be kept
    std::int64_t masks, kept;
    int waiting;  // values

    static std::int64_t most(std::int64_t size) { return lines((size + 7) / 8) + lines(size * sizeof(BITS)); }

    void start(std::int64_t size, std::uint8_t* memory) {
        masks = lines((size + 7) / 8);
        std::memset(mask, 0, std::size_t(masks));
        begin = memory;
        end = memory == nullptr ? nullptr : memory + masks;
        kept = waiting = 0;
    }
    void add(const BITS* old, const BITS* fresh, std::int64_t start, int size) {
        const int more = keep(old, fresh, size, mask + start / 8, values + waiting);
        kept += more;
        if (begin == nullptr) return;
        waiting += more;
        const int whole = waiting / PER_LINE * PER_LINE;
        send(whole);
        waiting -= whole;
        std::memcpy(values, values + whole, LINE);
    }
    void finish() {
        if (begin == nullptr || !kept) return;
        send((waiting + PER_LINE - 1) / PER_LINE * PER_LINE);
        stream(begin, mask, masks);
    }

  private:
    void send(int count) {
        stream(end, values, count * std::int64_t(sizeof(BITS)));
        end += count * sizeof(BITS);
    }
};

// Edits a piece block by block, and stops at a block with a result that is not finite or that the rule calls odd.
bool edit(const Piece& piece, const double* number, const Answers& answers, bool write, Record& record) {
    for (std::int64_t start = 0; start < piece.length; start += BLOCK) {
        const int size = int(std::min<std::int64_t>(piece.length - start, BLOCK));
        WEIGHT* const block = piece.theta + start;
        alignas(LINE) BITS fresh[BLOCK];
        unsigned odd = 0;
        BITS differs = 0, largest = 0;
        for (int i = 0; i < size; ++i) {
            const std::int64_t at = start + i;
            const BITS before = cast_bits<BITS>(block[i]);
            const Wide was = piece.weight(at);
            const Wide edited = rule(was, piece.mean(at), piece.other(at), number, answers, at, odd);
            // What the rule left alone keeps its own bits: not every NaN survives the way there and back.
            const bool alone = cast_bits<WideBits>(edited) == cast_bits<WideBits>(was);
            const BITS after = alone ? before : narrow(Number(edited));
            fresh[i] = after;
            differs |= before ^ after;
            largest = std::max<BITS>(largest, after & MAGNITUDE);
        }
        if (odd || largest >= EXPONENT) return false;
        if (!differs) continue;
        record.add(reinterpret_cast<const BITS*>(block), fresh, start, size);
        if (write) std::memcpy(block, fresh, std::size_t(size) * sizeof(BITS));
    }
    return true;
}

// Where a thread puts its old values: a share of the memory, so that no two touch a large page first at one time.
struct Share {
    std::int64_t at, end;
};

// What is used of the memory, from one call to the next.
struct Journal {
    std::uint8_t* memory;
    std::int64_t share, used;
    Share shares[];  // of each thread

    std::uint8_t* room(Share& mine, std::int64_t bytes) {
        if (mine.end - mine.at < bytes) {
            mine.at = __atomic_fetch_add(&used, share, __ATOMIC_RELAXED);
            mine.end = mine.at + share;
        }
        return memory + mine.at;
    }
};

// What a thread has to hand while it edits.
struct Editor {
    Journal* journal;
    Share* mine;
    const double* number;
    const void* const* answers;
    std::int64_t from, each;
    bool write;
    Outcome* outcomes;
    Record record;

    void operator()(const Piece& piece, std::int64_t p) {
        record.start(piece.length, journal == nullptr ? nullptr : journal->room(*mine, Record::most(piece.length)));
        const bool done = edit(piece, number, Answers(answers, (p - from) * each), write, record);
        record.finish();
        outcomes[p] = Outcome{journal == nullptr ? 0 : mine->at, record.kept, !done};
        if (journal != nullptr && record.kept) mine->at = record.end - journal->memory;
    }
#if defined(__AVX2__)
    ~Editor() { _mm_sfence(); }
#endif
};

}  // namespace

extern "C" {

// Edits the pieces from … to, each of `each` weights or what is left of its parameter, and writes an outcome for every
// piece. Old values go to the journal's memory, which must have room for as many as there are; without a journal nothing
// is kept, and without `write` nothing is overwritten. `answers` has a pointer for each question of the rule, to `each`
// answers for every one of these pieces.
void one_pass(const Job* jobs, std::int64_t count, std::int64_t from, std::int64_t to, std::int64_t each,
              const double* number, const void* const* answers, Journal* journal, Outcome* outcomes, int write,
              int threads) {
    std::atomic<int> thread{0};
    each_piece(jobs, count, from, to, each, threads, [&] {
        Share* const mine = journal == nullptr ? nullptr : &journal->shares[thread.fetch_add(1)];
        return Editor{journal, mine, number, answers, from, each, write != 0, outcomes, {}};
    });
}

}
