#include "worker/agent/rank_spec.h"

#include <algorithm>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/model_files.h"
#include "common/status_macros.h"

namespace lemo::agent {
namespace {

absl::Status ReplacePaths(const LocalPaths& paths, const char* field,
                          google::protobuf::RepeatedPtrField<lemo::v1::DataFile>* files) {
  for (int i = 0; i < files->size(); ++i) {
    lemo::v1::DataFile& file = *files->Mutable(i);
    const auto found = paths.files.find(file.path());
    if (found == paths.files.end()) {
      return absl::FailedPreconditionError(absl::StrCat(
          field, "[", i, "].path: ", file.path(), " is not among the files of the assignment"));
    }
    file.set_path(found->second);
  }
  return absl::OkStatus();
}

// Of the model's weights, by the checksums that came with the assignment; empty without them.
std::string DigestOf(const lemo::v1::Assignment& assignment) {
  std::vector<std::pair<std::string, std::string>> files;
  for (const lemo::v1::ModelFile& file : assignment.model_files()) {
    files.emplace_back(file.path(), file.sha256());
  }
  return WeightsDigest(std::move(files));
}

// The contract is of a run whose predictor is new and learns on the way. One that is found here may
// be larger, and takes other steps of all rows.
bool BeginsAsPlanned(const lemo::v1::Assignment& assignment) {
  const lemo::v1::TokensSpec& tokens = assignment.run().tokens();
  const bool is_auto = tokens.predictor().empty() || tokens.predictor() == "auto";
  return assignment.contract_bytes() > 0 && tokens.has_online() && is_auto;
}

}  // namespace

absl::StatusOr<lemo::v1::RunSpec> MakeRankSpec(const lemo::v1::Assignment& assignment,
                                               const LocalPaths& paths) {
  lemo::v1::RunSpec run = assignment.run();
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(std::filesystem::path(paths.model) / "config.json",
                                        ignored)) {
    return absl::FailedPreconditionError(absl::StrCat("model.path: ", run.model().path(),
                                                      " is not on this worker: no config.json in ",
                                                      paths.model));
  }
  run.mutable_model()->set_path(paths.model);
  LEMO_RETURN_IF_ERROR(ReplacePaths(paths, "data.train", run.mutable_data()->mutable_train()));
  LEMO_RETURN_IF_ERROR(ReplacePaths(paths, "data.eval", run.mutable_data()->mutable_eval()));
  run.mutable_output()->set_dir(paths.out);
  run.set_device(paths.device);
  // Other jobs may have the rest of the device.
  if (const int64_t bytes = assignment.contract_bytes(); bytes > 0) {
    run.mutable_memory()->set_budget_bytes(BudgetOf(run, bytes));
  }
  run.mutable_model()->clear_bases_dir();
  run.mutable_model()->clear_weights_digest();
  const std::string digest = DigestOf(assignment);
  if (!paths.bases.empty() && !digest.empty() && !run.tuner().has_full()) {
    run.mutable_model()->set_bases_dir(paths.bases);
    run.mutable_model()->set_weights_digest(digest);
  }
  if (run.tokens().policy() == "predictor") {
    if (!BeginsAsPlanned(assignment)) {
      run.mutable_tokens()->set_predictors_dir(paths.predictors);
    }
    if (!paths.predictor.empty()) run.mutable_tokens()->set_predictor(paths.predictor);
  }
  return run;
}

int64_t BudgetOf(const lemo::v1::RunSpec& run, int64_t bytes) {
  const lemo::v1::MemorySpec& memory = run.memory();
  return memory.has_budget_bytes() ? std::min(memory.budget_bytes(), bytes) : bytes;
}

PathNames::PathNames(const lemo::v1::Assignment& assignment, const LocalPaths& paths) {
  for (const auto& [name, path] : paths.files) names_.emplace_back(path, name);
  names_.emplace_back(paths.model, assignment.run().model().path());
  names_.emplace_back(paths.out + "/", "");
  names_.emplace_back(paths.bases, "bases");
  names_.emplace_back(paths.predictors, "predictors");
  names_.emplace_back(paths.predictor, assignment.run().tokens().predictor());
  // Of two where one begins with the other the longer is meant.
  std::stable_sort(names_.begin(), names_.end(),
                   [](const auto& a, const auto& b) { return a.first.size() > b.first.size(); });
  std::erase_if(names_, [](const auto& entry) { return entry.first.empty(); });
}

std::string PathNames::Restore(std::string text) const {
  for (const auto& [path, name] : names_) {
    absl::StrReplaceAll({{path, name}}, &text);
  }
  return text;
}

void PathNames::Restore(google::protobuf::Message* message) const {
  using google::protobuf::FieldDescriptor;
  const google::protobuf::Reflection& reflection = *message->GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(*message, &fields);
  for (const FieldDescriptor* field : fields) {
    const int count = field->is_repeated() ? reflection.FieldSize(*message, field) : 1;
    for (int i = 0; i < count; ++i) {
      if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
        Restore(field->is_repeated() ? reflection.MutableRepeatedMessage(message, field, i)
                                     : reflection.MutableMessage(message, field));
      } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
        if (field->is_repeated()) {
          reflection.SetRepeatedString(message, field, i,
                                       Restore(reflection.GetRepeatedString(*message, field, i)));
        } else {
          reflection.SetString(message, field, Restore(reflection.GetString(*message, field)));
        }
      }
    }
  }
}

}  // namespace lemo::agent
