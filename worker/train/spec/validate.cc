#include <algorithm>
#include <cmath>
#include <set>
#include <string_view>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/message_json.h"
#include "worker/train/spec/spec.h"
#include "worker/train/tokens/settings.h"

namespace lemo::train {
namespace {

using Choices = std::vector<std::string>;

// Parts of a document (data.skip_positions): beyond this many, hardly a distance would be true.
constexpr int32_t kMostChunks = 1024;

const Choices& Formats() {
  static const auto* choices = new Choices{"auto", "chat", "completion", "text", "book"};
  return *choices;
}

const Choices& StoragePolicies() {
  static const auto* choices =
      new Choices{"all",         "mlp",         "attn_out",         "input",
                  "all+offload", "mlp+offload", "attn_out+offload", "input+offload"};
  return *choices;
}

class Validator {
 public:
  Validator(const lemo::v1::RunSpec& spec, const ValidateOptions& options, Violations* violations)
      : spec_(spec), options_(options), violations_(violations) {}

  void Validate() {
    Device();
    Model();
    Data();
    Tuner();
    Train();
    Memory();
    Parallel();
    ValidateTokens(spec_.tokens(), violations_);
    EvalAndCheckpoint();
    Output();
  }

 private:
  void Fault(const std::string& field, std::string reason) {
    violations_->Add(field, std::move(reason));
  }

  void Required(const std::string& field, bool present, const std::string& what) {
    if (!present) Fault(field, absl::StrCat("required: ", what));
  }

  void OneOf(const std::string& field, const std::string& value, const Choices& choices) {
    if (std::find(choices.begin(), choices.end(), value) != choices.end()) return;
    const std::string nearest = NearestName(value, choices);
    Fault(field,
          absl::StrCat("\"", value, "\" is not one of ", absl::StrJoin(choices, ", "),
                       nearest.empty() ? "" : absl::StrCat("; did you mean ", nearest, "?")));
  }

  void AtLeast(const std::string& field, int64_t value, int64_t least) {
    if (value < least) Fault(field, absl::StrCat("must be at least ", least, ", got ", value));
  }

  // `holds` is the condition without regard to NaN, which no comparison lets through.
  void Number(const std::string& field, double value, bool holds, std::string_view condition) {
    if (std::isfinite(value) && holds) return;
    Fault(field, absl::StrCat("must be a finite number ", std::string(condition), ", got ", value));
  }

  void Positive(const std::string& field, double value) {
    Number(field, value, value > 0, "above 0");
  }
  void NotNegative(const std::string& field, double value) {
    Number(field, value, value >= 0, "of at least 0");
  }
  void BelowOne(const std::string& field, double value) {
    Number(field, value, value >= 0 && value < 1, "from 0 to below 1");
  }

  void Exclusive(const std::string& path, const std::string& a, bool has_a, const std::string& b,
                 bool has_b) {
    if (!has_a || !has_b) return;
    Fault(JoinPath(path, b), absl::StrCat("excludes ", JoinPath(path, a),
                                          "; give one of them (null removes a field)"));
  }

  void Device() {
    if (!spec_.has_device()) return;
    const std::string& device = spec_.device();
    uint32_t number = 0;
    if (device.substr(0, 5) == "cuda:" && absl::SimpleAtoi(device.substr(5), &number)) return;
    OneOf("device", device, {"auto", "cpu", "cuda", "cuda:N"});
    if (device == "cuda:N") Fault("device", "N stands for a number, for example cuda:0");
  }

  void Model() {
    const auto& model = spec_.model();
    Required("model.path", !model.path().empty(), "a Hugging Face model directory");
    if (model.has_bases_dir()) {
      Required("model.bases_dir", !model.bases_dir().empty(), "a directory; or leave it out");
    } else if (model.has_weights_digest()) {
      Fault("model.weights_digest", "is about model.bases_dir; give that, too");
    }
    if (!model.has_compute_type()) return;
    OneOf("model.compute_type", model.compute_type(),
          {"auto", "float32", "bfloat16", "float16", "float64"});
    if (spec_.device() == "cpu" && model.compute_type() == "float16") {
      Fault("model.compute_type", "float16 needs a CUDA device, and device is cpu");
    }
    if (spec_.device().substr(0, 4) == "cuda" && model.compute_type() == "float64") {
      Fault("model.compute_type",
            absl::StrCat("float64 runs on the CPU only, and device is ", spec_.device()));
    }
  }

  void Files(const std::string& path,
             const google::protobuf::RepeatedPtrField<lemo::v1::DataFile>& files) {
    for (int i = 0; i < files.size(); ++i) {
      const std::string at = ElementPath(path, i);
      Required(JoinPath(at, "path"), !files[i].path().empty(), "a file");
      if (files[i].has_format()) OneOf(JoinPath(at, "format"), files[i].format(), Formats());
    }
  }

  void Data() {
    const auto& data = spec_.data();
    if (options_.eval_only) {
      Required("data.eval", data.eval_size() > 0, "at least one file to evaluate on");
    } else {
      Required("data.train", data.train_size() > 0, "at least one file to train on");
    }
    Files("data.train", data.train());
    Files("data.eval", data.eval());
    // A document of one token has no next token to predict.
    if (data.has_max_length()) AtLeast("data.max_length", data.max_length(), 2);
    if (data.has_overlong()) {
      OneOf("data.overlong", data.overlong(), {"auto", "error", "truncate", "split", "drop"});
    }
    if (data.has_loss_on()) OneOf("data.loss_on", data.loss_on(), {"auto", "assistant", "all"});
    if (data.has_cache_dir()) {
      Required("data.cache_dir", !data.cache_dir().empty(), "a directory, or leave the field out");
    }
    if (data.has_skip_positions()) SkipPositions(data.skip_positions());
  }

  void SkipPositions(const lemo::v1::PositionSkipSpec& skip) {
    const auto& data = spec_.data();
    Required("data.skip_positions.target", skip.has_target(),
             "the length whose positions training should meet");
    // Its default is the longest that the model can, which leaves nothing to skip.
    Required("data.max_length", data.has_max_length(),
             "with data.skip_positions, the length of what is read");
    if (skip.has_target() && data.has_max_length() && skip.target() < data.max_length()) {
      Fault("data.skip_positions.target", absl::StrCat("must be at least data.max_length = ",
                                                       data.max_length(), ", got ", skip.target()));
    }
    if (skip.has_chunks() && (skip.chunks() < 1 || skip.chunks() > kMostChunks)) {
      Fault("data.skip_positions.chunks",
            absl::StrCat("must be from 1 to ", kMostChunks, ", got ", skip.chunks()));
    }
  }

  void Predictor() {
    const auto& predictor = spec_.predictor();
    if (spec_.tuner().kind_case() != lemo::v1::TunerSpec::KIND_NOT_SET) {
      Fault("predictor", "excludes tuner: a run trains one or the other");
    }
    if (!spec_.tokens().policy().empty() && spec_.tokens().policy() != "dense") {
      Fault("tokens", "a predictor is trained on passes of all rows; leave tokens out");
    }
    if (options_.eval_only) Fault("predictor", "has no meaning with --eval-only");
    if (predictor.has_kind())
      OneOf("predictor.kind", predictor.kind(), {"token_pool", "flat_slice"});
    if (predictor.has_combine()) {
      OneOf("predictor.combine", predictor.combine(), {"symmetric", "column", "column_mean"});
    }
    if (predictor.has_r1()) AtLeast("predictor.r1", predictor.r1(), 1);
    if (predictor.has_r2()) AtLeast("predictor.r2", predictor.r2(), 1);
    if (predictor.has_p()) AtLeast("predictor.p", predictor.p(), 1);
    if (predictor.has_block()) AtLeast("predictor.block", predictor.block(), 1);
    for (int i = 0; i < predictor.nested_from_size(); ++i) {
      AtLeast(ElementPath("predictor.nested_from", i), predictor.nested_from(i), 0);
    }
    if (!(predictor.allocate() >= 0 && predictor.allocate() < 1)) {
      Fault("predictor.allocate",
            absl::StrCat("a mean share, below 1, or 0 for none; got ", predictor.allocate()));
    }
    if (predictor.has_allocate_by()) {
      OneOf("predictor.allocate_by", predictor.allocate_by(), {"loss_per_byte", "fd"});
    }
    if (predictor.has_allocate_mlp()) {
      OneOf("predictor.allocate_mlp", predictor.allocate_mlp(), {"shared", "off"});
    }
  }

  void Tuner() {
    if (spec_.has_predictor()) return Predictor();
    switch (spec_.tuner().kind_case()) {
      case lemo::v1::TunerSpec::kLora:
        return Lora(spec_.tuner().lora());
      case lemo::v1::TunerSpec::kFull:
        return;
      case lemo::v1::TunerSpec::KIND_NOT_SET:
        Fault("tuner", "required: one of lora, full; {\"lora\": {}} takes the defaults");
    }
  }

  void Lora(const lemo::v1::LoraSpec& lora) {
    if (lora.has_rank()) AtLeast("tuner.lora.rank", lora.rank(), 1);
    if (lora.has_alpha()) Positive("tuner.lora.alpha", lora.alpha());
    if (lora.has_dropout()) BelowOne("tuner.lora.dropout", lora.dropout());
    std::set<std::string> seen;
    for (int i = 0; i < lora.targets_size(); ++i) {
      const std::string at = ElementPath("tuner.lora.targets", i);
      const std::string& target = lora.targets(i);
      Required(at, !target.empty(), "a module name such as q_proj, or all-linear");
      if (!seen.insert(target).second) Fault(at, absl::StrCat("\"", target, "\" stands twice"));
      if (target == "all-linear" && lora.targets_size() > 1) {
        Fault(at, "all-linear covers the other targets; give it alone");
      }
    }
    const std::map<std::string, int32_t> ranks(lora.rank_pattern().begin(),
                                               lora.rank_pattern().end());
    for (const auto& [key, rank] : ranks) {
      AtLeast(PatternPath("tuner.lora.rank_pattern", key), rank, 1);
    }
    const std::map<std::string, double> alphas(lora.alpha_pattern().begin(),
                                               lora.alpha_pattern().end());
    for (const auto& [key, alpha] : alphas) {
      Positive(PatternPath("tuner.lora.alpha_pattern", key), alpha);
    }
  }

  std::string PatternPath(const std::string& path, const std::string& key) {
    Required(EntryPath(path, key), !key.empty(), "a module name as the key");
    return EntryPath(path, key);
  }

  void Train() {
    const auto& train = spec_.train();
    Exclusive("train", "steps", train.has_steps(), "epochs", train.has_epochs());
    Exclusive("train", "batch_sequences", train.has_batch_sequences(), "batch_tokens",
              train.has_batch_tokens());
    if (train.has_steps()) AtLeast("train.steps", train.steps(), 1);
    if (train.has_epochs()) Positive("train.epochs", train.epochs());
    if (train.has_batch_sequences()) {
      AtLeast("train.batch_sequences", train.batch_sequences(), 1);
    }
    if (train.has_batch_tokens()) AtLeast("train.batch_tokens", train.batch_tokens(), 1);
    if (train.has_micro_batch_tokens()) {
      AtLeast("train.micro_batch_tokens", train.micro_batch_tokens(), 1);
      if (spec_.data().has_max_length() && train.micro_batch_tokens() < spec_.data().max_length()) {
        Fault("train.micro_batch_tokens",
              absl::StrCat("must hold a sequence of data.max_length = ", spec_.data().max_length(),
                           " tokens, got ", train.micro_batch_tokens()));
      }
    }
    if (train.has_learning_rate()) Positive("train.learning_rate", train.learning_rate());
    if (train.has_schedule()) {
      OneOf("train.schedule", train.schedule(), {"constant", "linear", "cosine"});
    }
    if (train.has_warmup_steps()) AtLeast("train.warmup_steps", train.warmup_steps(), 0);
    if (train.has_min_learning_rate_ratio()) {
      const double ratio = train.min_learning_rate_ratio();
      Number("train.min_learning_rate_ratio", ratio, ratio >= 0 && ratio <= 1, "from 0 to 1");
    }
    if (train.has_weight_decay()) NotNegative("train.weight_decay", train.weight_decay());
    if (train.has_beta1()) BelowOne("train.beta1", train.beta1());
    if (train.has_beta2()) BelowOne("train.beta2", train.beta2());
    if (train.has_epsilon()) Positive("train.epsilon", train.epsilon());
    if (train.has_max_grad_norm()) NotNegative("train.max_grad_norm", train.max_grad_norm());
  }

  void Memory() {
    const auto& memory = spec_.memory();
    if (memory.has_policy()) OneOf("memory.policy", memory.policy(), StoragePolicies());
    if (memory.has_mlp_tile_rows()) AtLeast("memory.mlp_tile_rows", memory.mlp_tile_rows(), 1);
    if (memory.has_loss_segment_rows()) {
      AtLeast("memory.loss_segment_rows", memory.loss_segment_rows(), 1);
    }
    for (int i = 0; i < memory.layers_size(); ++i) {
      const auto& run = memory.layers(i);
      const std::string at = ElementPath("memory.layers", i);
      AtLeast(JoinPath(at, "first"), run.first(), 0);
      if (run.last() < run.first()) {
        Fault(JoinPath(at, "last"),
              absl::StrCat("must be at least first = ", run.first(), ", got ", run.last()));
      }
      OneOf(JoinPath(at, "policy"), run.policy(), StoragePolicies());
      for (int j = 0; j < i; ++j) {
        const auto& other = memory.layers(j);
        if (run.first() <= other.last() && other.first() <= run.last()) {
          Fault(at, absl::StrCat("layers ", run.first(), " to ", run.last(), " overlap ",
                                 ElementPath("memory.layers", j), ", layers ", other.first(),
                                 " to ", other.last()));
          break;
        }
      }
    }
    Budget();
  }

  void Budget() {
    const auto& memory = spec_.memory();
    const auto& tokens = spec_.tokens();
    const bool dense = tokens.policy().empty() || tokens.policy() == "dense";
    if (memory.has_budget_bytes()) {
      AtLeast("memory.budget_bytes", memory.budget_bytes(), 1);
      // What the planner's forecast does not hold, no step can be fitted to.
      if (spec_.model().compute_type() == "float64") {
        Fault("memory.budget_bytes",
              "the bytes of float64 cannot be told before they are needed; leave the budget out");
      }
    } else if (memory.elastic()) {
      Fault("memory.elastic", "is about memory.budget_bytes; give that, too");
    }
    if (!memory.elastic()) {
      if (memory.has_min_keep()) Fault("memory.min_keep", "is for memory.elastic");
      return;
    }
    if (dense) {
      Fault("memory.elastic",
            "needs a tokens.policy that says which blocks go first; with tokens.keep 1 it begins "
            "with all of them");
    } else if (tokens.mode() == "threshold") {
      Fault("memory.elastic", "the thresholds say how many blocks are kept; use tokens.mode ratio");
    }
    Required("memory.min_keep", memory.has_min_keep(),
             "the least share of a document's blocks that a layer may be brought down to");
    if (!memory.has_min_keep()) return;
    const double least = memory.min_keep();
    Number("memory.min_keep", least, least > 0 && least < 1, "above 0 and below 1");
    const auto sparse = [](double keep) { return keep < 1; };
    const bool any = std::any_of(tokens.keep().begin(), tokens.keep().end(), sparse);
    double most = any || tokens.keep().empty() ? 0 : 1;
    for (const double keep : tokens.keep()) {
      if (sparse(keep)) most = std::max(most, keep);
    }
    if (most > 0 && least >= most) {
      Fault("memory.min_keep",
            absl::StrCat("must be below tokens.keep, ", most, ", to leave anything to give"));
    }
  }

  void Parallel() {
    const auto& parallel = spec_.parallel();
    AtLeast("parallel.tensor", parallel.tensor(), 0);
    AtLeast("parallel.data", parallel.data(), 0);
    if (parallel.has_shard()) {
      OneOf("parallel.shard", parallel.shard(), {"none", "optimizer", "gradients", "parameters"});
    }
    if (parallel.has_timeout_seconds()) {
      Positive("parallel.timeout_seconds", parallel.timeout_seconds());
    }
    if (parallel.has_bucket_bytes()) {
      AtLeast("parallel.bucket_bytes", parallel.bucket_bytes(), 1024);
    }
    if (spec_.tokens().has_online() && (parallel.tensor() > 1 || parallel.data() > 1)) {
      Fault("tokens.online",
            "is for one rank: each would teach its own predictor, and choose rows by that");
    }
    if (parallel.tensor() > 1) {
      SharedModel();
    } else if (parallel.sequence()) {
      Fault("parallel.sequence",
            "needs parallel.tensor above 1: it is the ranks of a tensor group that share the rows");
    }
  }

  // What ranks that share a model do not do.
  void SharedModel() {
    if (spec_.has_predictor()) {
      Fault("parallel.tensor",
            "must be 1 for a run that trains a predictor, which is compared with all heads");
    }
    const std::string& policy = spec_.tokens().policy();
    if (policy == "oracle" || policy == "table") {
      Fault("tokens.policy", absl::StrCat(policy,
                                          " scores blocks by all heads of a layer, which no rank "
                                          "has with parallel.tensor above 1"));
    }
  }

  void EvalAndCheckpoint() {
    const auto& eval = spec_.eval();
    const auto& checkpoint = spec_.checkpoint();
    AtLeast("eval.every_steps", eval.every_steps(), 0);
    AtLeast("eval.max_sequences", eval.max_sequences(), 0);
    if (eval.every_steps() > 0 && spec_.data().eval_size() == 0) {
      Fault("eval.every_steps", "needs files in data.eval");
    }
    if (eval.sparse() && (spec_.tokens().policy().empty() || spec_.tokens().policy() == "dense")) {
      Fault("eval.sparse", "needs a tokens.policy that drops rows");
    }
    if (eval.write_rows() && spec_.data().eval_size() == 0) {
      Fault("eval.write_rows", "needs files in data.eval");
    }
    Shadow();
    AtLeast("checkpoint.every_steps", checkpoint.every_steps(), 0);
    if (checkpoint.has_keep_last()) AtLeast("checkpoint.keep_last", checkpoint.keep_last(), 1);
    if (checkpoint.keep_best() && (checkpoint.every_steps() == 0 || eval.every_steps() == 0)) {
      Fault("checkpoint.keep_best",
            "has nothing to choose from without checkpoint.every_steps and eval.every_steps");
    }
  }

  void Shadow() {
    const auto& eval = spec_.eval();
    AtLeast("eval.shadow_every_steps", eval.shadow_every_steps(), 0);
    if (eval.has_shadow_sequences()) {
      AtLeast("eval.shadow_sequences", eval.shadow_sequences(), 1);
    }
    if (eval.has_max_quality_gap()) NotNegative("eval.max_quality_gap", eval.max_quality_gap());
    if (eval.shadow_every_steps() == 0) {
      if (eval.has_max_quality_gap()) {
        Fault("eval.max_quality_gap", "is measured every eval.shadow_every_steps; give that, too");
      }
      return;
    }
    if (spec_.data().eval_size() == 0) {
      Fault("eval.shadow_every_steps", "needs files in data.eval");
    }
    if (spec_.tokens().policy().empty() || spec_.tokens().policy() == "dense") {
      Fault("eval.shadow_every_steps", "needs a tokens.policy that drops rows");
    }
  }

  void Output() {
    Required("output.dir", !spec_.output().dir().empty(), "the directory to write to");
    if (spec_.output().merge() && spec_.tuner().has_full()) {
      Fault("output.merge", "is for lora; a full run writes the whole model anyway");
    }
  }

  const lemo::v1::RunSpec& spec_;
  const ValidateOptions& options_;
  Violations* const violations_;
};

}  // namespace

bool IsStoragePolicy(const std::string& name) {
  const Choices& choices = StoragePolicies();
  return std::find(choices.begin(), choices.end(), name) != choices.end();
}

void ValidateRunSpec(const lemo::v1::RunSpec& spec, Violations* violations,
                     const ValidateOptions& options) {
  Validator(spec, options, violations).Validate();
}

}  // namespace lemo::train
