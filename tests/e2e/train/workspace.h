// A scratch folder with a small model's run spec and data, and lemo-train started in it.
#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/e2e/train/process.h"

namespace lemo::train {

struct Outcome {
  int exit_code = 0;
  std::string out;
  std::string err;
  std::vector<nlohmann::json> events;  // lines of `out` that are JSON objects
  double seconds = 0;

  // Events of one type, in order.
  std::vector<nlohmann::json> Of(const std::string& type) const;
  // The last one of that type; a failure of the test and an empty object when there is none.
  nlohmann::json Last(const std::string& type) const;
  // Losses of the steps by number.
  std::map<int, double> Losses() const;
};

class Workspace {
 public:
  // Writes train.jsonl, eval.jsonl and nothing else.
  Workspace();
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // Four steps of LoRA over stories260k in float32, output in `out`. Paths are relative to the
  // folder, but for the model's.
  static nlohmann::json Spec();
  static std::filesystem::path Model();
  static std::string Program();

  const std::filesystem::path& path() const { return path_; }
  void Write(const std::string& name, const std::string& text) const;
  // A copy of the model's folder, for tests that break it.
  std::filesystem::path CopyModel(const std::string& name = "model") const;

  // Writes the spec as run.json and starts `lemo-train run.json --events json ARGS`.
  std::vector<std::string> Arguments(const nlohmann::json& spec,
                                     std::vector<std::string> args = {}) const;
  Outcome Run(const nlohmann::json& spec, std::vector<std::string> args = {},
              ProcessOptions options = {}) const;
  // lemo-train with these arguments alone.
  Outcome RunPlain(const std::vector<std::string>& args, ProcessOptions options = {}) const;

  // SHA-256 of every file below, "folder" for a folder, by path relative to this one.
  std::map<std::string, std::string> Snapshot() const;

 private:
  std::filesystem::path path_;
};

std::string ReadAll(const std::filesystem::path& path);

}  // namespace lemo::train
