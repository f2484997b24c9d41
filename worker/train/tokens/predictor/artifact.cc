#include "worker/train/tokens/predictor/artifact.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/files.h"
#include "common/safetensors.h"
#include "common/status_macros.h"
#include "worker/train/model/tensor_view.h"
#include "worker/train/publish/json_file.h"
#include "worker/train/state/atomic_directory.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kCardName = "card.json";
constexpr const char* kWeightsName = "predictor.safetensors";
constexpr const char* kFormat = "lemo.predictor";
constexpr int64_t kVersion = 1;
constexpr const char* kWeightsHash = "weights_sha256";  // in the card
constexpr const char* kCardHash = "card_sha256";        // in the weights' metadata

// JSON has no NaN; null stands for it.
OrderedJson Number(double value) {
  return std::isfinite(value) ? OrderedJson(value) : OrderedJson(nullptr);
}

double NumberOf(const OrderedJson& json) {
  return json.is_null() ? std::numeric_limits<double>::quiet_NaN() : json.get<double>();
}

OrderedJson Numbers(const std::vector<double>& values) {
  OrderedJson list = OrderedJson::array();
  for (const double value : values) list.push_back(Number(value));
  return list;
}

std::vector<double> NumbersOf(const OrderedJson& json) {
  std::vector<double> values;
  for (const OrderedJson& value : json) values.push_back(NumberOf(value));
  return values;
}

const char* KindName(bool flat_slice) { return flat_slice ? "flat_slice" : "token_pool"; }

OrderedJson CardJson(const Predictor& predictor) {
  const PredictorCard& card = predictor.card;
  OrderedJson json;
  json["format"] = kFormat;
  json["version"] = kVersion;
  json["lemo_version"] = card.lemo_version;
  json["created"] = card.created;
  json["base"] = {{"fingerprint", card.base.fingerprint},
                  {"family", card.base.family},
                  {"layers", card.base.layers},
                  {"hidden", card.base.hidden},
                  {"heads", card.base.heads},
                  {"kv_heads", card.base.kv_heads},
                  {"head_dim", card.base.head_dim}};
  json["kind"] = KindName(card.shape.flat_slice);
  json["block"] = card.shape.block;
  json["combine"] = card.combine;
  json["score_rope"] = card.score_rope;
  json["widths"] = {{"r1", card.shape.r1}, {"r2", card.shape.r2}, {"p", card.shape.p}};
  json["elastic"] = card.elastic;
  for (const auto& [name, head] : predictor.heads) {
    const auto widths = [](const PredictorPath& path) {
      return OrderedJson{path.w1.size(0), path.w2.size(0), path.w3.size(0)};
    };
    json["heads"][name] = {{"scale", head.scale}, {"q", widths(head.q)}, {"k", widths(head.k)}};
  }
  json["mlp_layers"] = OrderedJson::array();
  for (const auto& [layer, mlp] : predictor.mlp) json["mlp_layers"].push_back(layer);
  json["training"] = {{"data_fingerprint", card.data_fingerprint},
                      {"sequence_length", card.sequence_length},
                      {"steps", card.steps}};
  OrderedJson& curve = json["training"]["loss_curve"] = OrderedJson::array();
  for (const auto& [step, loss] : card.loss_curve) curve.push_back({step, Number(loss)});
  json["quality"] = {{"held_out", card.held_out}, {"shares", kRecallShares}};
  json["quality"]["heads"] = OrderedJson::object();
  for (const auto& [name, quality] : card.quality) {
    json["quality"]["heads"][name] = {{"recall", Numbers(quality.recall)},
                                      {"precision", Number(quality.precision)},
                                      {"spearman", Number(quality.spearman)},
                                      {"loss", Number(quality.loss)}};
  }
  if (!card.allocated.keep.empty()) {
    const AllocatedShares& from = card.allocated;
    OrderedJson& allocated = json["allocated"];
    allocated = {{"mean", from.mean},
                 {"keep", Numbers(from.keep)},
                 {"mlp", from.mlp},
                 {"sequences", from.sequences},
                 {"loss_gap", Number(from.loss_gap)},
                 {"shares", Numbers(from.rises.shares)},
                 {"rise", OrderedJson::array()},
                 {"threshold", Numbers(from.threshold)}};
    for (const std::vector<double>& rise : from.rises.rise) {
      allocated["rise"].push_back(Numbers(rise));
    }
  }
  return json;
}

// Throws nlohmann's exceptions for absent members and other types.
PredictorCard CardOf(const OrderedJson& json) {
  PredictorCard card;
  card.lemo_version = json.at("lemo_version");
  card.created = json.at("created");
  const OrderedJson& base = json.at("base");
  card.base = {base.at("fingerprint"), base.at("family"),   base.at("layers"),  base.at("hidden"),
               base.at("heads"),       base.at("kv_heads"), base.at("head_dim")};
  card.shape.flat_slice = json.at("kind") == KindName(true);
  card.shape.hidden = card.base.hidden;
  card.shape.slice = card.base.head_dim;
  card.shape.block = json.at("block");
  card.combine = json.at("combine");
  card.score_rope = json.at("score_rope");
  const OrderedJson& widths = json.at("widths");
  card.shape.r1 = widths.at("r1");
  card.shape.r2 = widths.at("r2");
  card.shape.p = widths.at("p");
  card.elastic = json.at("elastic");
  const OrderedJson& training = json.at("training");
  card.data_fingerprint = training.at("data_fingerprint");
  card.sequence_length = training.at("sequence_length");
  card.steps = training.at("steps");
  for (const OrderedJson& point : training.at("loss_curve")) {
    card.loss_curve.emplace_back(point.at(0).get<int64_t>(), NumberOf(point.at(1)));
  }
  card.held_out = json.at("quality").at("held_out");
  for (const auto& [name, quality] : json.at("quality").at("heads").items()) {
    card.quality[name] = {NumbersOf(quality.at("recall")), NumberOf(quality.at("precision")),
                          NumberOf(quality.at("spearman")), NumberOf(quality.at("loss"))};
  }
  if (json.contains("allocated")) {
    const OrderedJson& allocated = json.at("allocated");
    card.allocated = {.mean = allocated.at("mean"),
                      .keep = NumbersOf(allocated.at("keep")),
                      .mlp = allocated.at("mlp"),
                      .sequences = allocated.at("sequences"),
                      .loss_gap = NumberOf(allocated.at("loss_gap")),
                      .rises = {NumbersOf(allocated.at("shares")), {}},
                      .threshold = NumbersOf(allocated.at("threshold"))};
    for (const OrderedJson& rise : allocated.at("rise")) {
      card.allocated.rises.rise.push_back(NumbersOf(rise));
    }
  }
  return card;
}

// What makes the card the card it is: without the hash of the weights, which is written last.
std::string CardDigest(OrderedJson json) {
  json.erase(kWeightsHash);
  return Sha256Hex(json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace));
}

// Reads tensors by name and counts them, so that none is left over.
class TensorReader {
 public:
  explicit TensorReader(const SafetensorsFile& file) : file_(file) {}

  // `rows` or `columns` below 0: any size above 0. The first fault stays in `status`.
  at::Tensor Matrix(const std::string& name, int64_t rows, int64_t columns) {
    const TensorView* view = Find(name);
    if (view == nullptr) return at::empty({0, 0});
    const auto fits = [](int64_t size, int64_t want) { return want < 0 ? size > 0 : size == want; };
    if (view->shape.size() != 2 || !fits(view->shape[0], rows) || !fits(view->shape[1], columns)) {
      Fault(absl::StrCat(name, " has shape [", absl::StrJoin(view->shape, ", "), "] instead of [",
                         rows < 0 ? "any" : absl::StrCat(rows), ", ",
                         columns < 0 ? "any" : absl::StrCat(columns), "]"));
      return at::empty({0, 0});
    }
    return AsTensor(*view).clone();
  }

  at::Tensor Vector(const std::string& name, int64_t size) {
    const TensorView* view = Find(name);
    if (view == nullptr) return at::empty({0});
    if (view->shape != std::vector<int64_t>{size}) {
      Fault(absl::StrCat(name, " has shape [", absl::StrJoin(view->shape, ", "), "] instead of [",
                         size, "]"));
      return at::empty({0});
    }
    return AsTensor(*view).clone();
  }

  void Fault(const std::string& what) {
    if (!status_.ok()) return;
    status_ = absl::InvalidArgumentError(absl::StrCat(file_.path().string(), ": ", what));
  }

  absl::Status Finish() {
    if (read_ != file_.tensors().size()) {
      Fault(absl::StrCat("has ", file_.tensors().size(), " tensors; the card speaks of ", read_));
    }
    return status_;
  }

 private:
  const TensorView* Find(const std::string& name) {
    const auto found = file_.tensors().find(name);
    if (found == file_.tensors().end()) {
      Fault("has no tensor " + name);
      return nullptr;
    }
    ++read_;
    if (found->second.type != TensorType::kF32) {
      Fault(absl::StrCat(name, " is ", std::string(TensorTypeName(found->second.type)),
                         " instead of F32"));
      return nullptr;
    }
    return &found->second;
  }

  const SafetensorsFile& file_;
  size_t read_ = 0;
  absl::Status status_;
};

PredictorPath ReadPath(const PredictorShape& shape, const std::string& name,
                       const OrderedJson& widths, TensorReader* reader) {
  const int64_t r1 = widths.at(0), r2 = widths.at(1), p = widths.at(2);
  if (r1 < 1 || r2 < 1 || p < 1) {
    reader->Fault(absl::StrCat("the card gives ", name, " a width below 1"));
    return {};
  }
  return {reader->Matrix(name + ".w1", r1, shape.FirstColumns()),
          reader->Matrix(name + ".w2", r2, shape.SecondColumns(r1)),
          reader->Matrix(name + ".w3", p, r2)};
}

template <typename Value>
void Compare(const char* field, const Value& have, const Value& want,
             std::vector<std::string>* faults) {
  if (have == want) return;
  faults->push_back(absl::StrCat(field, " is ", have, ", wanted is ", want));
}

}  // namespace

std::string LayerHead(int64_t layer) { return absl::StrCat("layers.", layer); }
std::string AboveHead(int64_t layer) { return absl::StrCat("above.", layer); }

PredictorBase MakePredictorBase(const DecoderConfig& config, std::string fingerprint) {
  return {std::move(fingerprint), config.family,   config.layers,  config.hidden,
          config.heads,           config.kv_heads, config.head_dim};
}

absl::Status WritePredictor(const Predictor& predictor, const fs::path& dir) {
  std::map<std::string, TensorView> views;
  std::vector<at::Tensor> owned;
  const auto add = [&](const std::string& name, const at::Tensor& tensor) {
    owned.push_back(tensor.detach().to(at::kCPU, at::kFloat).contiguous());
    views[name] = AsView(owned.back());
  };
  for (const auto& [name, head] : predictor.heads) {
    for (const auto& [path, of] : {std::pair{".q", &head.q}, std::pair{".k", &head.k}}) {
      add(absl::StrCat(name, path, ".w1"), of->w1);
      add(absl::StrCat(name, path, ".w2"), of->w2);
      add(absl::StrCat(name, path, ".w3"), of->w3);
    }
  }
  for (const auto& [layer, mlp] : predictor.mlp) {
    const std::string name = absl::StrCat("mlp.", layer);
    add(name + ".w1", mlp.w1);
    add(name + ".w2", mlp.w2);
    add(name + ".bias", mlp.bias);
  }
  LEMO_ASSIGN_OR_RETURN(AtomicDirectory target, AtomicDirectory::Begin(dir));
  OrderedJson card = CardJson(predictor);
  const fs::path weights = target.path() / kWeightsName;
  LEMO_RETURN_IF_ERROR(
      WriteSafetensors(weights, views, {{"format", "pt"}, {kCardHash, CardDigest(card)}}));
  LEMO_ASSIGN_OR_RETURN(card[kWeightsHash], Sha256HexOfFile(weights));
  LEMO_RETURN_IF_ERROR(WriteJson(target.path() / kCardName, card));
  return target.Commit();
}

absl::StatusOr<Predictor> ReadPredictor(const fs::path& dir) {
  LEMO_ASSIGN_OR_RETURN(const OrderedJson json, ReadJsonObject(dir / kCardName));
  const auto fault = [&dir](const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat((dir / kCardName).string(), ": ", what));
  };
  if (json.value("format", "") != kFormat) return fault("is not the card of a predictor");
  if (json.value("version", int64_t{0}) != kVersion) {
    return fault(absl::StrCat("has format version ", json.value("version", int64_t{0}),
                              "; this program reads version ", kVersion));
  }
  const fs::path weights = dir / kWeightsName;
  LEMO_ASSIGN_OR_RETURN(const std::string hash, Sha256HexOfFile(weights));
  if (json.value(kWeightsHash, "") != hash) {
    return fault(absl::StrCat(kWeightsName, " is not the file that the card was written for"));
  }
  LEMO_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(weights));
  const auto digest = file.metadata().find(kCardHash);
  if (digest == file.metadata().end() || digest->second != CardDigest(json)) {
    return fault("was changed after the predictor was written");
  }
  Predictor predictor;
  TensorReader reader(file);
  try {
    predictor.card = CardOf(json);
    const PredictorShape& shape = predictor.card.shape;
    if (json.at("kind") != KindName(shape.flat_slice)) return fault("names a kind not known here");
    if (shape.hidden < 1 || shape.block < 1 || shape.slice < 1) return fault("has a size below 1");
    for (const auto& [name, head] : json.at("heads").items()) {
      predictor.heads[name] = {ReadPath(shape, name + ".q", head.at("q"), &reader),
                               ReadPath(shape, name + ".k", head.at("k"), &reader),
                               head.at("scale").get<double>()};
    }
    for (const OrderedJson& layer : json.at("mlp_layers")) {
      const std::string name = absl::StrCat("mlp.", layer.get<int64_t>());
      MlpPredictor mlp;
      mlp.w1 = reader.Matrix(name + ".w1", -1, shape.hidden);
      mlp.w2 = reader.Matrix(name + ".w2", 1, mlp.w1.size(0));
      mlp.bias = reader.Vector(name + ".bias", 1);
      predictor.mlp[layer.get<int64_t>()] = std::move(mlp);
    }
  } catch (const nlohmann::json::exception& error) {
    return fault(error.what());
  }
  LEMO_RETURN_IF_ERROR(reader.Finish());
  return predictor;
}

absl::Status CheckFits(const Predictor& predictor, const PredictorUse& use) {
  const PredictorCard& card = predictor.card;
  std::vector<std::string> faults;
  Compare("family", card.base.family, use.base.family, &faults);
  Compare("layers", card.base.layers, use.base.layers, &faults);
  Compare("hidden", card.base.hidden, use.base.hidden, &faults);
  Compare("heads", card.base.heads, use.base.heads, &faults);
  Compare("kv_heads", card.base.kv_heads, use.base.kv_heads, &faults);
  Compare("head_dim", card.base.head_dim, use.base.head_dim, &faults);
  if (!use.base.fingerprint.empty()) {
    Compare("the base model's fingerprint", card.base.fingerprint, use.base.fingerprint, &faults);
  }
  Compare("block", card.shape.block, use.block, &faults);
  if (!use.combine.empty()) Compare("combine", card.combine, use.combine, &faults);
  if (!use.score_rope.empty()) {
    Compare("score_rope", std::string(card.score_rope ? "true" : "false"), use.score_rope, &faults);
  }
  std::vector<std::string> absent;
  for (const std::string& head : use.heads) {
    if (predictor.heads.count(head) == 0) absent.push_back(head);
  }
  for (const int64_t layer : use.mlp) {
    if (predictor.mlp.count(layer) == 0) absent.push_back(absl::StrCat("mlp.", layer));
  }
  if (!absent.empty()) faults.push_back("it has nothing for " + absl::StrJoin(absent, ", "));
  using Allocated = PredictorUse::Allocated;
  if (use.allocated != Allocated::kNothing) {
    const AllocatedShares& have = card.allocated;
    const bool thresholds = use.allocated == Allocated::kThresholds;
    if (thresholds ? have.threshold.empty() : have.rises.rise.empty()) {
      faults.push_back(absl::StrCat("it has no ", thresholds ? "thresholds" : "shares",
                                    " by layer, which predictor.allocate measures"));
    } else {
      Compare("the MLP's rows, with which they were measured,", have.mlp, use.allocated_mlp,
              &faults);
    }
  }
  if (faults.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the predictor does not fit this run: ", absl::StrJoin(faults, "; ")));
}

std::vector<std::pair<int64_t, double>> ThinnedCurve(const std::vector<double>& losses,
                                                     int64_t before) {
  const auto steps = static_cast<int64_t>(losses.size());
  const int64_t apart = std::max<int64_t>((steps + kLossCurvePoints - 1) / kLossCurvePoints, 1);
  std::vector<std::pair<int64_t, double>> curve;
  for (int64_t i = 0; i < steps; ++i) {
    if (i % apart == 0 || i + 1 == steps) curve.emplace_back(before + i + 1, losses[i]);
  }
  return curve;
}

absl::StatusOr<fs::path> FindPredictor(const fs::path& dir, const PredictorUse& use,
                                       std::vector<std::string>* reasons) {
  std::error_code error;
  if (!fs::exists(dir, error)) return fs::path();
  fs::path newest;
  std::string created;
  fs::directory_iterator entries(dir, error);
  if (error) {
    return absl::PermissionDeniedError(absl::StrCat(dir.string(), ": ", error.message()));
  }
  for (const fs::directory_entry& entry : entries) {
    const std::string name = entry.path().filename().string();
    if (name.empty() || name.front() == '.' || !fs::exists(entry.path() / kCardName, error))
      continue;
    const absl::StatusOr<Predictor> predictor = ReadPredictor(entry.path());
    const absl::Status fits = predictor.ok() ? CheckFits(*predictor, use) : predictor.status();
    if (!fits.ok()) {
      reasons->push_back(absl::StrCat(entry.path().string(), ": ", fits.message()));
    } else if (newest.empty() ||
               std::pair(predictor->card.created, entry.path()) > std::pair(created, newest)) {
      created = predictor->card.created;
      newest = entry.path();
    }
  }
  return newest;
}

}  // namespace lemo::train
