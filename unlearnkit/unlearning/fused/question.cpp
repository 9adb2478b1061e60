// What a rule asks torch: a number for each weight of some pieces. After what is said in piece.h:
//   ANSWER                the type of that number, and of the answer
//   QUESTION              statements that return it from theta, forget, reference, number[] and earlier answers at i
namespace {

inline ANSWER question(Wide theta, Wide forget, Wide reference, const double* number, const Answers& answers,
                       std::int64_t i) {
    (void)theta, (void)forget, (void)reference, (void)answers, (void)i;
    QUESTION
}

}  // namespace

extern "C" {

// Writes the numbers of the pieces from … to, each of them `each` numbers after the one before it.
void question(const Job* jobs, std::int64_t count, std::int64_t from, std::int64_t to, std::int64_t each,
              const double* number, const void* const* answers, ANSWER* numbers, int threads) {
    each_piece(jobs, count, from, to, each, threads, [&] {
        return [&](const Piece& piece, std::int64_t p) {
            const Answers earlier(answers, (p - from) * each);
            ANSWER* const out = numbers + (p - from) * each;
            for (std::int64_t i = 0; i < piece.length; ++i)
                out[i] = question(piece.weight(i), piece.mean(i), piece.other(i), number, earlier, i);
        };
    });
}

}
