#include "worker/train/data/tokenize.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace lemo::train {
namespace {

// Templates may show today's date (`strftime_now`). A run that is resumed tomorrow must see the
// same tokens, so it is always 26 July 2024, which is what Llama 3's templates say where they have
// no clock.
constexpr int64_t kTemplateTime = 1721952000;

// `text` with BOS and EOS. Tokens that end at or before byte `trained_from` are not trained.
absl::StatusOr<TokenizedRow> TokenizeText(const std::string& whole, size_t trained_from,
                                          const text::ModelText& text) {
  LEMO_ASSIGN_OR_RETURN(text::Encoding encoding,
                        text.tokenizer().Encode(whole, /*add_special_tokens=*/false));
  const std::vector<int32_t>& ids = encoding.ids;
  TokenizedRow row;
  row.tokens.reserve(ids.size() + 2);
  if (text.adds_bos() && (ids.empty() || ids.front() != text.bos_id())) {
    row.tokens.push_back(text.bos_id());
    row.trained.push_back(trained_from == 0 ? 1 : 0);
  }
  row.tokens.insert(row.tokens.end(), ids.begin(), ids.end());
  for (const text::Encoding::Range& range : encoding.offsets) {
    row.trained.push_back(trained_from == 0 || range.end > trained_from ? 1 : 0);
  }
  if (text.eos_id() >= 0 && (ids.empty() || ids.back() != text.eos_id())) {
    row.tokens.push_back(text.eos_id());
    row.trained.push_back(1);
  }
  return row;
}

}  // namespace

std::optional<LossOn> LossOnFromName(std::string_view name) {
  if (name.empty() || name == "auto") return LossOn::kAuto;
  if (name == "assistant") return LossOn::kAssistant;
  if (name == "all") return LossOn::kAll;
  return std::nullopt;
}

absl::StatusOr<TokenizedRow> TokenizeRow(const Row& row, const text::ModelText& text,
                                         LossOn loss_on) {
  const bool all = loss_on == LossOn::kAll;
  if (!row.messages_json.empty()) {
    const text::ChatOptions options{.tools_json = row.tools_json,
                                    .train_all = all,
                                    .weights = row.weights,
                                    .now_s = kTemplateTime};
    LEMO_ASSIGN_OR_RETURN(text::ChatTokens chat, text.EncodeChat(row.messages_json, options));
    return TokenizedRow{std::move(chat.ids), std::move(chat.trained)};
  }
  if (row.format == RowFormat::kCompletion) {
    return TokenizeText(absl::StrCat(row.prompt, row.completion), all ? 0 : row.prompt.size(),
                        text);
  }
  return TokenizeText(row.text, 0, text);
}

bool RendersToolCalls(const Row& row, const text::ModelText& text) {
  if (row.called_functions.empty() || !text.chat_template().has_value()) return true;
  const text::RenderOptions options{.tools_json = {},  // whose names would be found instead
                                    .bos_token = text.bos_token(),
                                    .eos_token = text.eos_token(),
                                    .now_s = kTemplateTime};
  const absl::StatusOr<std::string> rendered =
      text.chat_template()->Render(row.messages_json, options);
  return !rendered.ok() ||
         std::all_of(row.called_functions.begin(), row.called_functions.end(),
                     [&](const std::string& name) { return absl::StrContains(*rendered, name); });
}

}  // namespace lemo::train
