// Return early on a status that is not OK.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define LEMO_RETURN_IF_ERROR(expression)                                                \
  do {                                                                                  \
    if (absl::Status lemo_status = (expression); !lemo_status.ok()) return lemo_status; \
  } while (false)

#define LEMO_CONCAT_INNER(a, b) a##b
#define LEMO_CONCAT(a, b) LEMO_CONCAT_INNER(a, b)

// LEMO_ASSIGN_OR_RETURN(auto value, Call()): declares or assigns `value`.
#define LEMO_ASSIGN_OR_RETURN(target, expression) \
  LEMO_ASSIGN_OR_RETURN_INNER(LEMO_CONCAT(lemo_statusor_, __LINE__), target, expression)
// NOLINTBEGIN(bugprone-macro-parentheses): names and a declaration
#define LEMO_ASSIGN_OR_RETURN_INNER(statusor, target, expression) \
  auto statusor = (expression);                                   \
  if (!statusor.ok()) return statusor.status();                   \
  target = *std::move(statusor)
// NOLINTEND(bugprone-macro-parentheses)
