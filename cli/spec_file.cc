#include "cli/spec_file.h"

#include <algorithm>
#include <iostream>
#include <iterator>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cli/yaml_json.h"
#include "common/assignment.h"
#include "common/files.h"
#include "common/message_json.h"

namespace lemo::cli {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;

constexpr int64_t kMaxSpecBytes = int64_t{1} << 20;

bool HasField(const Descriptor* type, const std::string& name) {
  for (int i = 0; i < type->field_count(); ++i) {
    if (type->field(i)->name() == name || type->field(i)->json_name() == name) return true;
  }
  return false;
}

bool IsRunField(const std::string& name) { return HasField(lemo::v1::RunSpec::descriptor(), name); }
bool IsJobField(const std::string& name) { return HasField(lemo::v1::JobSpec::descriptor(), name); }

bool IsRunSpec(const LocatedJson& root) {
  bool has_run_field = false;
  for (const LocatedJson& member : root.children) {
    if (member.key == "run") return false;
    has_run_field |= IsRunField(member.key);
  }
  return has_run_field;
}

// Moves what is not a job's own field under `run`.
LocatedJson Wrapped(LocatedJson root) {
  LocatedJson job, run;
  job.kind = run.kind = LocatedJson::Kind::kObject;
  job.line = run.line = root.line;
  run.key = "run";
  for (LocatedJson& member : root.children) {
    (IsJobField(member.key) ? job : run).children.push_back(std::move(member));
  }
  job.children.push_back(std::move(run));
  return job;
}

void MoveToService(lemo::v1::JobSpec* spec, std::vector<std::string>* notes) {
  lemo::v1::RunSpec* run = spec->mutable_run();
  if (!run->output().dir().empty()) {
    notes->push_back(absl::StrCat("output.dir ", run->output().dir(),
                                  " is not used: the service keeps results; `lemo job fetch` "
                                  "brings them here"));
    run->mutable_output()->clear_dir();
  }
  if (run->model().has_bases_dir()) {
    notes->push_back("model.bases_dir is not used: workers have their own");
    run->mutable_model()->clear_bases_dir();
    run->mutable_model()->clear_weights_digest();
  }
  if (run->data().has_cache_dir()) {
    notes->push_back("data.cache_dir is not used: the service has its own");
    run->mutable_data()->clear_cache_dir();
  }
  if (run->has_device()) {
    const std::string kind = run->device().substr(0, run->device().find(':'));
    run->clear_device();
    if (kind == "auto" || spec->resources().has_device()) return;
    spec->mutable_resources()->set_device(kind);
    notes->push_back(absl::StrCat("device became resources.device: ", kind));
  }
}

// `train.steps=1` means the run's, as in lemo-train.
std::string FullAssignment(const std::string& text) {
  const std::string name = text.substr(0, text.find_first_of(".[="));
  return IsRunField(name) && !IsJobField(name) ? absl::StrCat("run.", text) : text;
}

}  // namespace

absl::StatusOr<SpecText> ReadSpecFile(const std::string& path) {
  if (path != "-") {
    absl::StatusOr<std::string> text = ReadFile(path, kMaxSpecBytes);
    if (!text.ok()) return text.status();
    return SpecText{*std::move(text), path};
  }
  SpecText source{.text = "", .file = "standard input"};
  char buffer[1 << 14];
  while (std::cin.read(buffer, sizeof(buffer)), std::cin.gcount() > 0) {
    source.text.append(buffer, static_cast<size_t>(std::cin.gcount()));
    if (static_cast<int64_t>(source.text.size()) > kMaxSpecBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("the spec on standard input is larger than ", kMaxSpecBytes, " bytes"));
    }
  }
  return source;
}

lemo::v1::JobSpec ParseJobSpec(const SpecText& source, const std::vector<std::string>& assignments,
                               Violations* violations, std::vector<std::string>* notes) {
  lemo::v1::JobSpec spec;
  JsonFault fault;
  std::optional<LocatedJson> root = absl::EndsWithIgnoreCase(source.file, ".json")
                                        ? ParseLocatedJson(source.text, &fault)
                                        : ParseYaml(source.text, &fault);
  if (!root) {
    violations->Add(Violation{.reason = fault.reason, .file = source.file, .line = fault.line});
    return spec;
  }
  const bool is_run_spec = IsRunSpec(*root);
  if (is_run_spec) root = Wrapped(*std::move(root));
  MessageReader reader(source.file, lemo::v1::JobSpec::descriptor(), violations);
  reader.ReadMessage(*root, "", &spec);
  for (const std::string& text : assignments) {
    ApplyAssignment(FullAssignment(text), "run.train.steps=100", &spec, violations);
  }
  if (is_run_spec) MoveToService(&spec, notes);
  return spec;
}

}  // namespace lemo::cli
