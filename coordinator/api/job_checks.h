// What SubmitJob checks before it answers: everything that needs neither the model's nor the data's
// contents.
#pragma once

#include "absl/status/status.h"
#include "common/violations.h"
#include "coordinator/core/core.h"
#include "coordinator/store/store.h"
#include "lemo/v1/job_spec.pb.h"

namespace lemo::coordinator {

// Looks up the files and the model that `spec` names and fills in `record` (files, model, and the
// memory a rank takes at least). Faults go to `violations`, all of them; a status that is not OK is
// the store's.
absl::Status CheckJobSpec(const lemo::v1::JobSpec& spec, Store* store, JobRecord* record,
                          Violations* violations);

}  // namespace lemo::coordinator
