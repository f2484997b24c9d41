// What a training step is made of, operator by operator, and what a device was measured to do of
// each.
//
// The cost model (cost_model.h) has two kinds of work, which is enough to compare runs on one
// device. To foretell seconds it is not: products with a rank of 8 reach a fiftieth of the rate of
// square ones, attention's backward pass has a rate of its own, and what is done element by element
// takes a tenth to a half of a step. Here each has its amount, and its size, by which its rate is
// looked up.
//
// The counts follow the trainer's tape (worker/train/tape) call by call. FLOP are those of the cost
// model; what it leaves out and this has: elements, an adapter's inner activations that backward
// makes again, and the projections that a norm of heads needs in backward whatever is kept.
//
// Pure: numbers in, numbers out.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "planner/cost_model.h"

namespace lemo::planner {

// Amounts are FLOP of the first three, parameters of the last, else elements.
enum class Operator {
  kProducts,           // size: the smaller of the matrix's two widths
  kAttention,          // size: rows of a document; width: of a head
  kAttentionBackward,  // the same
  kNorm,               // size, from here on: elements of one call
  kNormBackward,
  kActivation,  // of the MLP: SwiGLU or ReLU
  kActivationBackward,
  kRotation,
  kGather,   // rows out of a larger tensor
  kScatter,  // rows added to the stream
  kCopy,     // and sums of two tensors
  kLoss,     // softmax cross-entropy and its gradient, logits
  kUpdate,   // AdamW with the gradients' norm
};
inline constexpr int kOperators = 13;

// `attention_backward`. As in the rates file.
std::string_view OperatorName(Operator op);
std::optional<Operator> OperatorNamed(std::string_view name);

struct RatePoint {
  double size = 0;
  double rate = 0;  // a second
};

// Rates by operator. Between measured sizes (and widths) the rate is interpolated on a logarithmic
// scale, beyond them it is that of the nearest.
class OperatorRates {
 public:
  // `points` by rising size, all above 0; none takes the operator away. Of several widths each is
  // set by itself.
  void Set(Operator op, double width, const std::vector<RatePoint>& points);
  // 0 where nothing is known of the operator.
  double At(Operator op, double size, double width = 0) const;
  bool empty() const;

 private:
  struct Point {
    double log_size, log_rate;
  };
  struct Curve {
    double log_width;
    std::vector<Point> points;
  };
  std::vector<Curve> curves_[kOperators];  // by rising width
};

struct OperatorWork {
  Operator op = Operator::kProducts;
  double amount = 0;
  double size = 1;
  double width = 0;
};

// How a layer's rows are passed: what operators' sizes and divisions depend on.
struct PassShape {
  double passes = 1;         // that the rows are passed in
  int64_t tensor_ranks = 1;  // that divide heads, widths and words; amounts are those of one
};

// A layer's operators, in both passes. `kept` and `replay` are by Stored: the copies that forward
// makes of what is kept, and what backward computes again.
struct LayerOperators {
  std::vector<OperatorWork> forward, backward;
  std::vector<OperatorWork> kept[4], replay[4];
};
LayerOperators OperatorsOf(const ModelShape& shape, const Tuning& tuning, const LayerRows& rows,
                           const PassShape& pass);

// Head and loss over `rows` labelled rows, with the gathering of `embedded` rows at the other end
// of the model.
std::vector<OperatorWork> HeadOperators(const ModelShape& shape, const Tuning& tuning, int64_t rows,
                                        int64_t embedded, const PassShape& pass);

// The same without a gradient.
std::vector<OperatorWork> LossOperators(const ModelShape& shape, int64_t rows, int64_t embedded,
                                        const PassShape& pass);

// Ranking `rows` rows of the stream: by their length, and with `width` above 0 by a network whose
// first layer has so many neurons. `reads_stream` false: by neither.
std::vector<OperatorWork> SelectionOperators(const ModelShape& shape, double rows, int64_t width,
                                             bool reads_stream, const PassShape& pass);

// Scores of all pairs of blocks in so many rows and pairs of rows, of queries and keys that are
// there: of attention the first of its two products, at its rate.
std::vector<OperatorWork> ScoreOperators(const ModelShape& shape, double rows, double pairs);

// The queries and keys of so many rows.
std::vector<OperatorWork> QueryKeyOperators(const ModelShape& shape, const Tuning& tuning,
                                            double rows, const PassShape& pass);

// What a network does that learns from `rows` rows, both ways: its first layer of `width` neurons;
// the others are of blocks, and count for nothing.
std::vector<OperatorWork> LearningOperators(const ModelShape& shape, double rows, int64_t width,
                                            const PassShape& pass);

// What a device takes for it. An operator that `rates` does not know takes `flat`'s time where it
// is counted in FLOP, else none.
double Seconds(const OperatorWork& work, const OperatorRates& rates, const Rates& flat);
double Seconds(const std::vector<OperatorWork>& work, const OperatorRates& rates,
               const Rates& flat);

}  // namespace lemo::planner
