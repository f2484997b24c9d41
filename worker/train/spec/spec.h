// Reading a RunSpec: JSON to message, overrides, defaults, validation that names every fault at
// once.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/violations.h"
#include "lemo/v1/run_spec.pb.h"

namespace lemo::train {

// Parses proto3 JSON (snake_case or lowerCamel names). Every unknown field (with the nearest known
// name), wrong type, duplicate key, second member of a oneof and out-of-range number is added to
// `violations` with its path, file and line; JSON that does not parse adds one with file and line.
// The message holds what could be read.
lemo::v1::RunSpec ParseRunSpec(const std::string& json, const std::string& file,
                               Violations* violations);

// Applies `a.b=c` assignments in order. c is JSON, or a bare string; what it names is replaced, and
// null clears it. `data.train[0].path=x` reaches into lists; an index one past the end appends.
// Behind a map the rest of the path is the key. Reaching into a member of a oneof when the spec
// holds another member is a fault: `tuner.lora.rank=4` never turns a full run into a LoRA run.
void ApplyOverrides(const std::vector<std::string>& assignments, lemo::v1::RunSpec* spec,
                    Violations* violations);

// Sets every optional field that is absent to its default, except those that depend on the model
// (data.max_length, train.micro_batch_tokens, memory tile sizes). `device` and `model.compute_type`
// become `auto`. Without steps and epochs a run is one epoch. The tuner is never chosen for the
// user.
void FillDefaults(lemo::v1::RunSpec* spec);

struct ValidateOptions {
  // The run only evaluates: data.eval is required and data.train is not.
  bool eval_only = false;
};

// Everything that can be said without opening the model or the data: required fields, ranges, NaN,
// choices, combinations that exclude each other. Holds for specs with and without defaults filled
// in.
void ValidateRunSpec(const lemo::v1::RunSpec& spec, Violations* violations,
                     const ValidateOptions& options = {});

// Indented JSON with the names of the proto, numbers as numbers; ParseRunSpec reads it back.
std::string RunSpecToJson(const lemo::v1::RunSpec& spec);

// Names a storage policy can have: all, mlp, attn_out, input, each with an optional "+offload".
bool IsStoragePolicy(const std::string& name);

}  // namespace lemo::train
