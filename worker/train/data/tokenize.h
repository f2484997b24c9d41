// From a checked row to tokens, and which of them are trained.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "text/model_text.h"
#include "worker/train/data/rows.h"

namespace lemo::train {

// Which tokens carry loss. kAuto: assistant turns, completions, everything in plain text.
// kAssistant: the same, for files that have prompts only. kAll: everything.
enum class LossOn { kAuto, kAssistant, kAll };

// `auto`, `assistant`, `all`; "" means auto. Absent for another name.
std::optional<LossOn> LossOnFromName(std::string_view name);

// `trained` is as long as `tokens`.
struct TokenizedRow {
  std::vector<int32_t> tokens;
  std::vector<uint8_t> trained;
};

// chat: the template's rendering, mask as ModelText::EncodeChat says.
// completion: prompt and completion are tokenised as one text; a token with at least one byte of
// the
//   completion is trained, and so is the EOS after it. A BOS in front, where the model adds one, is
//   not.
// text: BOS where the model adds one, the text, EOS; all trained.
// A BOS or EOS that the text itself spells there is not doubled; a model without EOS gets none.
// Errors: FailedPrecondition (chat without a template), InvalidArgument (the template refuses the
// row).
absl::StatusOr<TokenizedRow> TokenizeRow(const Row& row, const text::ModelText& text,
                                         LossOn loss_on);

// False when the row calls functions whose names the template does not render: then what the model
// was to learn is not in the tokens. Rows without calls are true.
bool RendersToolCalls(const Row& row, const text::ModelText& text);

}  // namespace lemo::train
