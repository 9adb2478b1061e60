// What every pass over a model does: it reads θ, F_f and F_r piece by piece, on several threads. What is put before this file
// makes it that of a rule:
//   WEIGHT, BITS          the type of θ, and the unsigned integer of its size
//   NARROW                1 for bfloat16 and 2 for float16, whose WEIGHT is their bits; else 0
//   COMPUTE               the type that the rule computes in
//   FORGET, REFERENCE     the types of the totals
//   ZEROS                 1 when there is no reference: it is zero, and no memory is read for it
//   ANSWERS               the members of Answers, below, and how it is made
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

// What torch computed of a piece for this rule: a pointer for each question, to the answer of the first weight.
struct Answers {
    ANSWERS
};

struct Job {  // a parameter
    WEIGHT* theta;
    const FORGET* forget;
    const REFERENCE* reference;
    double forget_count, reference_count;
    std::int64_t length, first;  // weights; the number of its first piece
};

// A piece of a parameter.
struct Piece {
    WEIGHT* theta;
    const FORGET* forget;
    const REFERENCE* reference;
    std::int64_t length;
    FORGET forget_count;
    REFERENCE reference_count;

    Piece(const Job& job, std::int64_t begin, std::int64_t each)
        : theta(job.theta + begin),
          forget(job.forget + begin),
          reference(job.reference + (ZEROS ? 0 : begin)),
          length(std::min(each, job.length - begin)),
          forget_count(FORGET(job.forget_count)),
          reference_count(REFERENCE(job.reference_count)) {}

    Wide weight(std::int64_t i) const { return Wide(widen(theta[i])); }
    Wide mean(std::int64_t i) const { return Wide(forget[i] / forget_count); }
    Wide other(std::int64_t i) const { return ZEROS ? Wide(0) : Wide(reference[i] / reference_count); }
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

// Shares the pieces from … to out among threads; `worker` makes each of them what it calls with a piece and its number.
template <class Worker>
void each_piece(const Job* jobs, std::int64_t count, std::int64_t from, std::int64_t to, std::int64_t each, int threads,
                const Worker& worker) {
    std::atomic<std::int64_t> next{from};
    on_threads(threads, [&] {
        auto work = worker();
        const Job* job = jobs;
        for (std::int64_t p; (p = next.fetch_add(1)) < to;) {
            while (job + 1 < jobs + count && job[1].first <= p) ++job;
            work(Piece(*job, (p - job->first) * each, each), p);
        }
    });
}

}  // namespace
