// One pass over θ, F_f and F_r of many parameters for one rule. What is put before this file makes it that of a rule:
//   WEIGHT, BITS          the type of θ, and the unsigned integer of its size
//   NARROW                1 for bfloat16 and 2 for float16, whose WEIGHT is their bits; else 0
//   COMPUTE               the type that the rule computes in
//   FORGET, REFERENCE     the types of the totals
//   ZEROS                 1 when there is no reference: it is zero, and no memory is read for it
//   PIECE                 how many weights one thread edits at a time, at most; a multiple of BLOCK
//   RULE                  statements that return θ' from theta, forget, reference and number[]; `odd |= …` refuses
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr int BLOCK = 512;  // a block of each array stays in the innermost cache
using Wide = COMPUTE;

template <class To, class From>
inline To cast_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "a view of the same bits");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

#if NARROW == 1
using Number = float;
constexpr BITS EXPONENT = 0x7f80;
inline Number widen(WEIGHT w) { return cast_bits<float>(std::uint32_t(w) << 16); }
inline BITS narrow(Number x) {  // to the nearest, ties to even; of a NaN nothing but its being one matters
    const std::uint32_t u = cast_bits<std::uint32_t>(x);
    const std::uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    return BITS(x != x ? 0x7fffu : rounded);
}
#elif NARROW == 2
using Number = float;
constexpr BITS EXPONENT = 0x7c00;
inline Number widen(WEIGHT w) { return float(cast_bits<_Float16>(w)); }
inline BITS narrow(Number x) { return cast_bits<BITS>(_Float16(x)); }
#else
using Number = WEIGHT;
constexpr BITS EXPONENT = BITS(sizeof(BITS) == 8 ? 0x7ff0000000000000u : 0x7f800000u);
inline Number widen(WEIGHT w) { return w; }
inline BITS narrow(Number x) { return cast_bits<BITS>(x); }
#endif

template <class T>
struct Unsigned;
template <>
struct Unsigned<float> { using type = std::uint32_t; };
template <>
struct Unsigned<double> { using type = std::uint64_t; };
using WideBits = Unsigned<Wide>::type;

constexpr double infinity = std::numeric_limits<double>::infinity();

constexpr BITS MAGNITUDE = BITS(BITS(~BITS(0)) >> 1);

// What rules are made of, besides + - * and comparisons. Each does for every number what torch does on a CPU.

template <class T>
inline float float_(T x) { return float(x); }

template <class T>
inline double double_(T x) { return double(x); }

template <class T>
inline T choose(bool condition, T x, T y) { return condition ? x : y; }

inline bool opposite(bool x) { return !x; }

template <class T>
inline T negative(T x) { return -x; }

template <class T>
inline T magnitude(T x) { return std::abs(x); }

template <class T>
inline T largest(T) { return std::numeric_limits<T>::max(); }

template <class T>
inline T ratio(T x, T y) { return x / y; }

template <class T>
inline T ratio_to_constant(T x, T y) { return x / y; }

template <class T>
inline T at_least(T x, T low) { return x < low ? low : x; }

template <class T>
inline T at_most(T x, T high) { return x > high ? high : x; }

template <class T>
inline T nan_to_num(T x, T nan, T high, T low) {
    const T not_above = x == T(infinity) ? high : x;
    const T finite = x == -T(infinity) ? low : not_above;
    return x != x ? nan : finite;
}

template <class T>
inline T larger(T x, T y) {
    const T z = x < y ? y : x;
    return y != y ? y : z;
}

template <class T>
inline T smaller(T x, T y) { return -larger(-x, -y); }

template <class T>
inline unsigned tie(T x, T y) { return (x == y) & (std::signbit(x) != std::signbit(y)); }

template <class T>
inline unsigned torn(T, T) { return 0; }  // of a zero and a bound of zero, whatever their signs, it is the first

inline Wide rule(Wide theta, Wide forget, Wide reference, const double* number, unsigned& odd) {
    (void)odd;
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

struct Job {  // a parameter
    WEIGHT* theta;
    const FORGET* forget;
    const REFERENCE* reference;
    double forget_count, reference_count;
    std::int64_t length, first;  // weights; the number of its first piece
};

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
bool edit(const Job& job, std::int64_t begin, std::int64_t length, const double* number, bool write, Record& record) {
    const FORGET by_forget = FORGET(job.forget_count);
    const REFERENCE by_reference = REFERENCE(job.reference_count);
    for (std::int64_t start = 0; start < length; start += BLOCK) {
        const int size = int(std::min<std::int64_t>(length - start, BLOCK));
        WEIGHT* const block = job.theta + begin + start;
        const FORGET* const f = job.forget + begin + start;
        const REFERENCE* const r = job.reference + (ZEROS ? 0 : begin + start);
        alignas(LINE) BITS fresh[BLOCK];
        unsigned odd = 0;
        BITS differs = 0, largest = 0;
        for (int i = 0; i < size; ++i) {
            const BITS before = cast_bits<BITS>(block[i]);
            const Wide was = Wide(widen(block[i])), mean = Wide(f[i] / by_forget);
            const Wide other = ZEROS ? Wide(0) : Wide(r[i] / by_reference);
            const Wide edited = rule(was, mean, other, number, odd);
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

template <class Work>
void on_threads(int threads, const Work& work) {
#if defined(_OPENMP)
#pragma omp parallel num_threads(threads)
    work();
#else
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back(work);
    work();
    for (std::thread& other : others) other.join();
#endif
}

}  // namespace

extern "C" {

// Edits the pieces from … to, each of `each` weights or what is left of its parameter, and writes an outcome for every
// piece. Old values go to the journal's memory, which must have room for as many as there are; without a journal nothing
// is kept, and without `write` nothing is overwritten.
void one_pass(const Job* jobs, std::int64_t count, std::int64_t from, std::int64_t to, std::int64_t each,
              const double* number, Journal* journal, Outcome* outcomes, int write, int threads) {
    std::atomic<std::int64_t> next{from};
    std::atomic<int> thread{0};
    on_threads(threads, [&] {
        Share nothing{0, 0};
        Share& mine = journal == nullptr ? nothing : journal->shares[thread.fetch_add(1)];
        Record record;
        const Job* job = jobs;
        for (std::int64_t p; (p = next.fetch_add(1)) < to;) {
            while (job + 1 < jobs + count && job[1].first <= p) ++job;
            const std::int64_t begin = (p - job->first) * each, length = std::min(each, job->length - begin);
            record.start(length, journal == nullptr ? nullptr : journal->room(mine, Record::most(length)));
            const bool done = edit(*job, begin, length, number, write != 0, record);
            record.finish();
            outcomes[p] = Outcome{mine.at, record.kept, !done};
            if (journal != nullptr && record.kept) mine.at = record.end - journal->memory;
        }
#if defined(__AVX2__)
        _mm_sfence();
#endif
    });
}

}
