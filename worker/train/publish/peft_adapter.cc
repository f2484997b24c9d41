#include "worker/train/publish/peft_adapter.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "common/violations.h"
#include "worker/train/publish/json_file.h"
#include "worker/train/publish/peft_pattern.h"
#include "worker/train/state/atomic_directory.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kConfigName = "adapter_config.json";
constexpr const char* kTensorsName = "adapter_model.safetensors";
constexpr const char* kAllLinear = "all-linear";
constexpr absl::string_view kKeyPrefix = "base_model.model.";
// The oldest PEFT that knows every key we write.
constexpr const char* kPeftVersion = "0.18.0";

// A pattern table in the order of the file, which decides where several keys match.
using Patterns = std::vector<std::pair<std::string, double>>;

double ByPattern(const Patterns& patterns, const std::string& module, double otherwise) {
  for (const auto& [key, value] : patterns) {
    if (MatchesPeftPattern(module, key)) return value;
  }
  return otherwise;
}

// What config and keys say about ranks and scales.
struct Scaling {
  double rank = 0;
  double alpha = 0;
  bool rslora = false;
  Patterns rank_pattern;
  Patterns alpha_pattern;

  ImportedModule Of(const std::string& module) const {
    ImportedModule out;
    out.rank = static_cast<int64_t>(ByPattern(rank_pattern, module, rank));
    out.alpha = ByPattern(alpha_pattern, module, alpha);
    const double divisor = static_cast<double>(out.rank);
    out.scale = out.alpha / (rslora ? std::sqrt(divisor) : divisor);
    return out;
  }
};

bool IsFloat(TensorType type) {
  return type == TensorType::kF64 || type == TensorType::kF32 || type == TensorType::kF16 ||
         type == TensorType::kBF16;
}

std::string ShapeText(const TensorView& tensor) {
  return absl::StrCat("[", absl::StrJoin(tensor.shape, ", "), "]");
}

// Module path and matrix of a LoRA key; nullopt for any other key.
std::optional<std::pair<std::string, char>> ParseLoraKey(const std::string& key) {
  if (!absl::StartsWith(key, kKeyPrefix)) return std::nullopt;
  for (const char matrix : {'A', 'B'}) {
    const std::string suffix = absl::StrCat(".lora_", std::string(1, matrix), ".weight");
    if (!absl::EndsWith(key, suffix) || key.size() <= kKeyPrefix.size() + suffix.size()) continue;
    return std::pair(key.substr(kKeyPrefix.size(), key.size() - kKeyPrefix.size() - suffix.size()),
                     matrix);
  }
  return std::nullopt;
}

const char* WhyNotLora(const std::string& key) {
  if (absl::StrContains(key, "lora_magnitude_vector")) return "belongs to DoRA";
  if (absl::StrContains(key, "lora_embedding_"))
    return "adapts an embedding, which is not supported";
  if (absl::EndsWith(key, ".bias")) return "is a trained bias, which is not supported";
  return "is not a LoRA matrix (base_model.model.<module>.lora_A.weight or lora_B.weight)";
}

// Groups the tensors by module and checks them against each other and against the config.
std::map<std::string, ImportedModule> CheckTensors(const std::map<std::string, TensorView>& tensors,
                                                   const Scaling& scaling, const std::string& file,
                                                   Violations* violations) {
  const auto fault = [&](const std::string& key, std::string reason) {
    violations->Add({.field = key, .reason = std::move(reason), .file = file});
  };
  struct Pair {
    const TensorView* a = nullptr;
    const TensorView* b = nullptr;
  };
  std::map<std::string, Pair> pairs;
  for (const auto& [key, tensor] : tensors) {
    const auto parsed = ParseLoraKey(key);
    if (!parsed.has_value()) {
      fault(key, WhyNotLora(key));
      continue;
    }
    Pair& pair = pairs[parsed->first];
    (parsed->second == 'A' ? pair.a : pair.b) = &tensor;
    if (!IsFloat(tensor.type)) {
      fault(key, absl::StrCat("has the type ", std::string(TensorTypeName(tensor.type)),
                              ", a float type is needed"));
    }
  }
  if (tensors.empty()) fault("", "holds no tensors: the adapter is empty");

  std::map<std::string, ImportedModule> modules;
  for (const auto& [module, pair] : pairs) {
    if (pair.a == nullptr || pair.b == nullptr) {
      fault(LoraKey(module, pair.a == nullptr ? "A" : "B"), "is missing, its partner is there");
      continue;
    }
    const ImportedModule expected = scaling.Of(module);
    const bool matrices = pair.a->shape.size() == 2 && pair.b->shape.size() == 2;
    if (!matrices || pair.a->shape[0] != expected.rank || pair.b->shape[1] != expected.rank) {
      fault(module, absl::StrCat("A is ", ShapeText(*pair.a), " and B is ", ShapeText(*pair.b),
                                 "; the config gives it rank ", expected.rank,
                                 ", so [rank, in] and [out, rank] are expected"));
      continue;
    }
    modules[module] = expected;
  }
  return modules;
}

OrderedJson ConfigJson(const LoraExport& adapter, const std::set<std::string>& targets) {
  OrderedJson rank_pattern = OrderedJson::object(), alpha_pattern = OrderedJson::object();
  for (const auto& [key, rank] : adapter.rank_pattern) rank_pattern[key] = rank;
  for (const auto& [key, alpha] : adapter.alpha_pattern) alpha_pattern[key] = PlainNumber(alpha);
  return OrderedJson{
      {"alpha_pattern", alpha_pattern},
      {"auto_mapping", nullptr},
      {"base_model_name_or_path", adapter.base_model_name_or_path},
      {"bias", "none"},
      {"exclude_modules", nullptr},
      {"fan_in_fan_out", false},
      {"inference_mode", true},
      {"init_lora_weights", true},
      {"layers_pattern", nullptr},
      {"layers_to_transform", nullptr},
      {"lora_alpha", PlainNumber(adapter.alpha)},
      {"lora_bias", false},
      {"lora_dropout", adapter.dropout},
      {"modules_to_save", nullptr},
      {"peft_type", "LORA"},
      {"peft_version", kPeftVersion},
      {"r", adapter.rank},
      {"rank_pattern", rank_pattern},
      {"revision", nullptr},
      {"target_modules", targets},
      {"target_parameters", nullptr},
      {"task_type", "CAUSAL_LM"},
      {"use_dora", false},
      {"use_rslora", adapter.rslora},
  };
}

absl::StatusOr<std::set<std::string>> CheckExport(const LoraExport& adapter) {
  Violations violations;
  const Scaling scaling = {
      .rank = static_cast<double>(adapter.rank),
      .alpha = adapter.alpha,
      .rslora = adapter.rslora,
      .rank_pattern = Patterns(adapter.rank_pattern.begin(), adapter.rank_pattern.end()),
      .alpha_pattern = Patterns(adapter.alpha_pattern.begin(), adapter.alpha_pattern.end())};
  const auto modules = CheckTensors(adapter.tensors, scaling, "the adapter to write", &violations);

  std::set<std::string> targets(adapter.target_modules.begin(), adapter.target_modules.end());
  if (targets.erase(kAllLinear) > 0) {
    for (const auto& [module, ignored] : modules) {
      targets.insert(module.substr(module.rfind('.') + 1));
    }
  }
  for (const auto& [module, ignored] : modules) {
    const auto matches = [&name = module](const std::string& target) {
      return MatchesPeftTarget(name, target);
    };
    if (std::none_of(targets.begin(), targets.end(), matches)) {
      violations.Add(module, absl::StrCat("has tensors, but is not among the target modules ",
                                          absl::StrJoin(targets, ", ")));
    }
  }
  LEMO_RETURN_IF_ERROR(violations.ToStatus());
  return targets;
}

// That what lies on the disk is what was meant to be written.
absl::Status CompareWritten(const fs::path& dir, const LoraExport& adapter) {
  LEMO_ASSIGN_OR_RETURN(const LoraImport written, ReadPeftAdapter(dir));
  for (const auto& [key, tensor] : adapter.tensors) {
    const auto found = written.tensors.find(key);
    if (found == written.tensors.end() || found->second.type != tensor.type ||
        found->second.shape != tensor.shape || found->second.bytes != tensor.bytes) {
      return absl::DataLossError(
          absl::StrCat((dir / kTensorsName).string(), ": ", key, " reads back differently"));
    }
  }
  return absl::OkStatus();
}

std::string UsageText(const std::string& base) {
  return absl::StrCat(
      "from peft import PeftModel\n"
      "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
      "adapter = \"path/to/this/directory\"\n"
      "tokenizer = AutoTokenizer.from_pretrained(adapter)\n"
      "model = AutoModelForCausalLM.from_pretrained(",
      QuotedLiteral(base), ")\nmodel = PeftModel.from_pretrained(model, adapter)\n");
}

std::string LastName(const std::string& path) {
  const fs::path name(path);
  return (name.has_filename() ? name : name.parent_path()).filename().string();
}

absl::Status WriteInto(const fs::path& dir, const LoraExport& adapter,
                       const std::set<std::string>& targets, const ExportExtras& extras) {
  LEMO_RETURN_IF_ERROR(WriteJson(dir / kConfigName, ConfigJson(adapter, targets)));
  LEMO_RETURN_IF_ERROR(WriteSafetensors(dir / kTensorsName, adapter.tensors, {{"format", "pt"}}));
  LEMO_RETURN_IF_ERROR(WriteTextFiles(extras, dir));
  LEMO_RETURN_IF_ERROR(WriteRunFile(extras, dir));
  const std::string& base = adapter.base_model_name_or_path;
  LEMO_RETURN_IF_ERROR(WriteModelCard({.title = absl::StrCat("LoRA adapter for ", LastName(base)),
                                       .base_model = base,
                                       .library = "peft",
                                       .tags = {"lora", "lemo"},
                                       .usage = UsageText(base)},
                                      extras, dir));
  return CompareWritten(dir, adapter);
}

// Reading the members of adapter_config.json; every fault is added to `violations`.
class ConfigReader {
 public:
  ConfigReader(const OrderedJson& json, std::string file, Violations* violations)
      : json_(json), file_(std::move(file)), violations_(violations) {}

  void Fault(const std::string& field, std::string reason) {
    violations_->Add({.field = field, .reason = std::move(reason), .file = file_});
  }

  // Null when absent or JSON null.
  const OrderedJson* Find(const char* field) const {
    const auto found = json_.find(field);
    return found == json_.end() || found->is_null() ? nullptr : &*found;
  }

  double Number(const char* field, double otherwise) {
    const OrderedJson* value = Find(field);
    if (value == nullptr) return otherwise;
    if (!value->is_number()) {
      Fault(field, "is not a number");
      return otherwise;
    }
    return value->get<double>();
  }

  bool Flag(const char* field) {
    const OrderedJson* value = Find(field);
    if (value == nullptr) return false;
    if (!value->is_boolean()) {
      Fault(field, "is neither true nor false");
      return false;
    }
    return value->get<bool>();
  }

  std::string Text(const char* field) {
    const OrderedJson* value = Find(field);
    if (value == nullptr) return "";
    if (!value->is_string()) {
      Fault(field, "is not a string");
      return "";
    }
    return value->get<std::string>();
  }

  Patterns NumberTable(const char* field) {
    Patterns table;
    const OrderedJson* value = Find(field);
    if (value == nullptr) return table;
    if (!value->is_object()) {
      Fault(field, "is not an object");
      return table;
    }
    for (const auto& [key, entry] : value->items()) {
      if (entry.is_number()) {
        table.emplace_back(key, entry.get<double>());
      } else {
        Fault(absl::StrCat(field, ".", key), "is not a number");
      }
    }
    return table;
  }

  // A list of strings, or one string.
  std::vector<std::string> TextList(const char* field) {
    std::vector<std::string> list;
    const OrderedJson* value = Find(field);
    if (value == nullptr) return list;
    if (value->is_string()) return {value->get<std::string>()};
    const auto is_string = [](const OrderedJson& entry) { return entry.is_string(); };
    if (!value->is_array() || !std::all_of(value->begin(), value->end(), is_string)) {
      Fault(field, "is neither a string nor a list of strings");
      return list;
    }
    for (const OrderedJson& entry : *value) list.push_back(entry.get<std::string>());
    return list;
  }

 private:
  const OrderedJson& json_;
  std::string file_;
  Violations* violations_;
};

// Null, false, "" and empty containers: an option that is off.
bool IsOff(const OrderedJson& value) {
  return value.is_null() || value == false || value == "" ||
         ((value.is_array() || value.is_object()) && value.empty());
}

// Refuses what would make the tensors mean something else than scale * B A added to a linear
// module.
void CheckOptions(const OrderedJson& json, ConfigReader& reader) {
  // Options that are read, or say nothing about what the tensors mean once they are trained.
  static const auto* const kHarmless = new std::set<std::string>{"alpha_pattern",
                                                                 "auto_mapping",
                                                                 "base_model_name_or_path",
                                                                 "eva_config",
                                                                 "exclude_modules",
                                                                 "inference_mode",
                                                                 "layers_pattern",
                                                                 "layers_to_transform",
                                                                 "lora_alpha",
                                                                 "lora_dropout",
                                                                 "megatron_core",
                                                                 "peft_type",
                                                                 "peft_version",
                                                                 "qalora_group_size",
                                                                 "r",
                                                                 "rank_pattern",
                                                                 "revision",
                                                                 "runtime_config",
                                                                 "target_modules",
                                                                 "use_rslora"};
  static const auto* const kReasons = new std::map<std::string, std::string>{
      {"use_dora", "DoRA adapters are not supported"},
      {"modules_to_save", "adapters that replace whole modules are not supported"},
      {"lora_bias", "biases on LoRA matrices are not supported"},
      {"fan_in_fan_out", "transposed weights (GPT-2's Conv1D) are not supported"},
      {"layer_replication", "replicated layers are not supported"},
      {"target_parameters", "adapters on bare parameters are not supported"},
      {"trainable_token_indices", "trained token embeddings are not supported"}};
  for (const auto& [name, value] : json.items()) {
    if (name == "bias") {
      if (!IsOff(value) && value != "none") {
        reader.Fault(name, absl::StrCat("is ",
                                        QuotedLiteral(value.is_string() ? value.get<std::string>()
                                                                        : value.type_name()),
                                        "; trained biases are not supported, only \"none\""));
      }
    } else if (name == "task_type") {
      if (!IsOff(value) && value != "CAUSAL_LM") reader.Fault(name, "is not CAUSAL_LM");
    } else if (name == "init_lora_weights") {
      // Others (pissa, olora, corda, loftq, ...) start by changing the base weights.
      if (!value.is_null() && !value.is_boolean() && value != "gaussian" && value != "eva" &&
          value != "orthogonal") {
        reader.Fault(name,
                     "names a start that changes the base weights; convert the adapter to plain "
                     "LoRA first (PEFT: path_initial_model_for_weight_conversion)");
      }
    } else if (!kHarmless->contains(name) && !IsOff(value)) {
      const auto reason = kReasons->find(name);
      reader.Fault(
          name, reason != kReasons->end() ? reason->second : "is an option that is not supported");
    }
  }
}

}  // namespace

std::string LoraKey(std::string_view module_path, std::string_view matrix) {
  return absl::StrCat(kKeyPrefix, std::string(module_path), ".lora_", std::string(matrix),
                      ".weight");
}

absl::Status WritePeftAdapter(const fs::path& dir, const LoraExport& adapter,
                              const ExportExtras& extras) {
  LEMO_ASSIGN_OR_RETURN(const std::set<std::string> targets, CheckExport(adapter));
  LEMO_ASSIGN_OR_RETURN(AtomicDirectory directory, AtomicDirectory::Begin(dir));
  LEMO_RETURN_IF_ERROR(WriteInto(directory.path(), adapter, targets, extras));
  return directory.Commit();
}

absl::StatusOr<LoraImport> ReadPeftAdapter(const fs::path& dir) {
  const fs::path config_path = dir / kConfigName, tensors_path = dir / kTensorsName;
  LEMO_ASSIGN_OR_RETURN(const OrderedJson json, ReadJsonObject(config_path));
  Violations violations;
  ConfigReader reader(json, config_path.string(), &violations);
  const std::string type = reader.Text("peft_type");
  if (type != "LORA") {
    // The other members mean something else then, so nothing more is said about them.
    reader.Fault("peft_type",
                 absl::StrCat("is ", QuotedLiteral(type), "; only \"LORA\" is supported"));
    return violations.ToStatus();
  }
  CheckOptions(json, reader);

  LoraImport adapter;
  adapter.base_model_name_or_path = reader.Text("base_model_name_or_path");
  adapter.dropout = reader.Number("lora_dropout", 0);
  adapter.target_modules = reader.TextList("target_modules");
  const Scaling scaling = {.rank = reader.Number("r", 8),
                           .alpha = reader.Number("lora_alpha", 8),
                           .rslora = reader.Flag("use_rslora"),
                           .rank_pattern = reader.NumberTable("rank_pattern"),
                           .alpha_pattern = reader.NumberTable("alpha_pattern")};
  const auto check_rank = [&reader](const std::string& field, double rank) {
    if (rank != std::floor(rank) || rank < 1 || rank > 1e6) {
      reader.Fault(field, absl::StrCat("is ", rank, ", a rank is an integer from 1"));
    }
  };
  check_rank("r", scaling.rank);
  for (const auto& [key, rank] : scaling.rank_pattern) {
    check_rank(absl::StrCat("rank_pattern.", key), rank);
  }
  LEMO_RETURN_IF_ERROR(violations.ToStatus());
  adapter.rank = static_cast<int64_t>(scaling.rank);
  adapter.alpha = scaling.alpha;
  adapter.rslora = scaling.rslora;

  std::error_code error;
  if (!fs::exists(tensors_path, error) && fs::exists(dir / "adapter_model.bin", error)) {
    return absl::InvalidArgumentError(
        absl::StrCat((dir / "adapter_model.bin").string(),
                     " is a pickle, which is never read; save the adapter as safetensors"));
  }
  LEMO_ASSIGN_OR_RETURN(adapter.file, SafetensorsFile::Open(tensors_path));
  adapter.tensors = adapter.file.tensors();
  adapter.modules = CheckTensors(adapter.tensors, scaling, tensors_path.string(), &violations);
  LEMO_RETURN_IF_ERROR(violations.ToStatus());
  return adapter;
}

}  // namespace lemo::train
