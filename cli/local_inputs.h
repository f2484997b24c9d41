// What a spec names on this machine, brought to the service.
#pragma once

#include <ostream>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cli/connection.h"
#include "common/violations.h"
#include "lemo/v1/job_spec.pb.h"
#include "lemo/v1/model_service.pb.h"

namespace lemo::cli {

// Paths of `spec` that are neither here nor names of the service (`files/...`, `models/...`).
// Looks at the disk, calls nobody.
void CheckLocalInputs(const lemo::v1::JobSpec& spec, Violations* violations);

// Uploads the local files of run.data and puts `files/...` in their places; registers the local
// directory of run.model.path and puts `models/...` in. What was done is told on `err`.
absl::Status SendLocalInputs(const Connection& connection, lemo::v1::JobSpec* spec,
                             std::ostream& err);

// `text` as an id of a model: other characters than letters, digits, `-`, `_` and `.` become `-`;
// at most 63.
std::string ModelId(const std::string& text);

// The model of that directory (absolute) under `id`, or under `id-2`, `id-3`... when the service
// has another model of that name.
absl::StatusOr<lemo::v1::Model> RegisterModel(const Connection& connection, const std::string& id,
                                              const std::string& path);

}  // namespace lemo::cli
