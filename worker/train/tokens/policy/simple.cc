// The policies that need no scores of their own: chance, place, and size of the rows. They are what
// every better one has to beat.
#include <ATen/ATen.h>

#include "worker/train/data/random.h"
#include "worker/train/tokens/policy/policy.h"

namespace lemo::train {
namespace {

// Every block the same chance. Depends on the choice and the block's place in the effective batch
// alone, not on how that is divided.
class RandomPolicy final : public TokenPolicy {
 public:
  std::vector<float> Scores(const ScoreRequest& request) override {
    std::vector<float> scores;
    for (const uint64_t place : request.block_places) {
      // The upper 24 bits, as many as a float holds.
      const uint64_t bits = MixKeys(request.draw, place, 0) >> 40;
      scores.push_back(static_cast<float>(bits));
    }
    return scores;
  }
};

// The last blocks of a document: with sinks, the window of StreamingLLM (arXiv 2309.17453).
class RecencyPolicy final : public TokenPolicy {
 public:
  std::vector<float> Scores(const ScoreRequest& request) override {
    std::vector<float> scores(request.space.blocks().blocks());
    for (size_t n = 0; n < scores.size(); ++n) scores[n] = static_cast<float>(n);
    return scores;
  }
};

// Mean length of the residual rows.
class NormPolicy final : public TokenPolicy {
 public:
  std::vector<float> Scores(const ScoreRequest& request) override {
    const auto type = request.stream.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    return BlockMeans(at::linalg_vector_norm(request.stream, 2, {1}, false, type),
                      request.space.blocks());
  }
  bool ReadsStream() const override { return true; }
};

}  // namespace

std::unique_ptr<TokenPolicy> MakeRandomPolicy() { return std::make_unique<RandomPolicy>(); }
std::unique_ptr<TokenPolicy> MakeRecencyPolicy() { return std::make_unique<RecencyPolicy>(); }
std::unique_ptr<TokenPolicy> MakeNormPolicy() { return std::make_unique<NormPolicy>(); }

}  // namespace lemo::train
