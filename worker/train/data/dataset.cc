#include "worker/train/data/dataset.h"

#include <unistd.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/train/data/book.h"
#include "worker/train/data/content_hash.h"

namespace lemo::train {
namespace {

// Raise when the same file and options would give other tokens.
constexpr int kTokenisationVersion = 1;

// Everything that the documents of a file depend on.
std::string CacheKey(const std::string& content_hash, const text::ModelText& text, RowFormat format,
                     const DatasetOptions& options, const std::filesystem::path& path) {
  const auto& chat_template = text.chat_template();
  return Sha256Hex(absl::StrCat(
      "version ", kTokenisationVersion, "\ncontent ", content_hash, "\ntokenizer ",
      text.tokenizer_hash(), "\ntemplate ", chat_template ? chat_template->hash() : "none",
      "\nbos ", text.bos_id(), " ", text.adds_bos() ? 1 : 0, " ", text.bos_token(), "\neos ",
      text.eos_id(), " ", text.eos_token(), "\nformat ", RowFormatName(format),
      // With format auto the name's ending has a say.
      format == RowFormat::kAuto ? path.extension().string() : std::string(), "\nmax_length ",
      options.max_length, "\noverlong ", static_cast<int>(options.overlong), "\nloss_on ",
      static_cast<int>(options.loss_on), "\nvocabulary ", options.vocabulary));
}

// Reads one file into documents.
class FileTokenizer {
 public:
  FileTokenizer(const RowFile& file, const text::ModelText& text, const DatasetOptions& options,
                CacheWriter* writer, DataCounts* counts, Violations* violations)
      : file_(file),
        text_(text),
        options_(options),
        writer_(writer),
        counts_(counts),
        violations_(violations) {}

  absl::Status Run() {
    std::optional<RowReader> reader = RowReader::Open(file_, violations_);
    if (!reader) return absl::OkStatus();
    return reader->is_book() ? ReadBook() : ReadRows(&*reader);
  }

 private:
  DocumentLimits Limits(Overlong default_overlong) const {
    return {.max_length = options_.max_length,
            .overlong = options_.overlong == Overlong::kAuto ? default_overlong : options_.overlong,
            .vocabulary = options_.vocabulary};
  }

  void Fault(int64_t line, std::string json_path, std::string reason) {
    violations_->Add(Violation{.field = file_.field,
                               .reason = std::move(reason),
                               .file = file_.path.string(),
                               .line = line,
                               .json_path = std::move(json_path)});
  }

  // True when a file of this format cannot be used at all, after saying why.
  bool Refuse(RowFormat format, bool is_chat, int64_t line) {
    if (is_chat && !text_.chat_template().has_value()) {
      Fault(line, "", "the row is a conversation, but the model has no chat template");
      return true;
    }
    if (options_.loss_on == LossOn::kAssistant &&
        (format == RowFormat::kText || format == RowFormat::kBook)) {
      Fault(line, "", "data.loss_on is assistant, but plain text has no assistant's part");
      return true;
    }
    return false;
  }

  absl::Status ReadRows(RowReader* reader) {
    DocumentWriter documents(Limits(Overlong::kError), writer_, counts_, violations_);
    Row row;
    while (reader->Next(&row, violations_)) {
      const bool is_chat = !row.messages_json.empty();
      if (Refuse(row.format, is_chat, row.line)) return absl::OkStatus();
      absl::StatusOr<TokenizedRow> tokenized = TokenizeRow(row, text_, options_.loss_on);
      if (!tokenized.ok()) {
        Fault(row.line, row.format == RowFormat::kChat ? "messages" : "",
              std::string(tokenized.status().message()));
        continue;
      }
      if (!RendersToolCalls(row, text_)) ++counts_->rows_with_unrendered_tool_calls;
      documents.Begin({file_.field, file_.path.string(), row.line});
      LEMO_RETURN_IF_ERROR(documents.Append(tokenized->tokens, tokenized->trained, {}));
      LEMO_RETURN_IF_ERROR(documents.End());
      if (documents.hopeless()) return absl::OkStatus();
    }
    return absl::OkStatus();
  }

  absl::Status ReadBook() {
    if (Refuse(RowFormat::kBook, /*is_chat=*/false, 0)) return absl::OkStatus();
    DocumentWriter documents(Limits(Overlong::kSplit), writer_, counts_, violations_);
    documents.Begin({file_.field, file_.path.string(), 0});
    std::vector<uint8_t> trained;
    int32_t last = -1;
    int64_t last_line = 1;
    const auto append = [&](std::span<const int32_t> tokens, std::span<const int64_t> lines) {
      if (tokens.empty()) return absl::OkStatus();
      trained.assign(tokens.size(), 1);
      last = tokens.back();
      last_line = lines.back();
      LEMO_RETURN_IF_ERROR(documents.Append(tokens, trained, lines));
      // Stops the reading; the reason is among the violations.
      return documents.hopeless() ? absl::CancelledError() : absl::OkStatus();
    };
    const auto append_special = [&](int32_t token) {
      return append(std::span(&token, 1), std::span(&last_line, 1));
    };
    bool first = true;
    absl::Status sink_status;
    int64_t fault_line = 0;
    absl::Status status = TokenizeBook(
        file_.path, text_.tokenizer(), BookOptions{},
        [&](std::span<const int32_t> tokens, std::span<const int64_t> lines) {
          if (std::exchange(first, false) && text_.adds_bos() && tokens.front() != text_.bos_id()) {
            sink_status = append_special(text_.bos_id());
          }
          if (sink_status.ok()) sink_status = append(tokens, lines);
          return sink_status;
        },
        &fault_line);
    if (sink_status.ok() && !status.ok()) {
      Fault(fault_line, "", std::string(status.message()));
      return absl::OkStatus();
    }
    if (status.ok() && text_.eos_id() >= 0 && last != text_.eos_id()) {
      status = append_special(text_.eos_id());
    }
    if (absl::IsCancelled(status)) return absl::OkStatus();
    LEMO_RETURN_IF_ERROR(status);
    return documents.End();
  }

  const RowFile& file_;
  const text::ModelText& text_;
  const DatasetOptions& options_;
  CacheWriter* writer_;
  DataCounts* counts_;
  Violations* violations_;
};

// BOS and EOS go into every row, so that a tokenizer of another model is found without reading any.
bool CheckSpecialTokens(const text::ModelText& text, const DatasetOptions& options,
                        Violations* violations) {
  const auto check = [&](const char* name, int32_t id) {
    if (options.vocabulary <= 0 || id < options.vocabulary) return true;
    violations->Add(
        "model.path",
        absl::StrCat("the tokenizer's ", name, " is token ", id, ", but the model's embedding has ",
                     options.vocabulary, " entries: the tokenizer does not fit the model"));
    return false;
  };
  const bool bos = !text.adds_bos() || check("BOS", text.bos_id());
  return check("EOS", text.eos_id()) && bos;
}

// The file's documents, from the cache or read anew. Absent when it has faults.
absl::StatusOr<std::optional<TokenCache>> OpenFile(const RowFile& file, const text::ModelText& text,
                                                   const DatasetOptions& options,
                                                   DataCounts* counts, Violations* violations) {
  absl::StatusOr<std::string> content = HashFile(file.path);
  if (!content.ok()) {
    violations->Add(Violation{.field = absl::StrCat(file.field, ".path"),
                              .reason = std::string(content.status().message())});
    return std::nullopt;
  }
  const std::string key = CacheKey(*content, text, file.format, options, file.path);
  const bool keep = !options.cache_dir.empty();
  std::error_code no_temporary_folder;
  const std::filesystem::path folder =
      keep ? options.cache_dir : std::filesystem::temp_directory_path(no_temporary_folder);
  const std::filesystem::path path =
      folder / (keep ? absl::StrCat(key.substr(0, 32), ".tokens")
                     : absl::StrCat("lemo-", ::getpid(), "-", key.substr(0, 32), ".tokens"));
  if (keep) {
    absl::StatusOr<TokenCache> cache = TokenCache::Open(path, key);
    if (cache.ok()) {
      counts->files_from_cache += 1;
      *counts += cache->counts();
      return std::make_optional(*std::move(cache));
    }
    LEMO_RETURN_IF_ERROR(MakeDirectories(folder));
  } else if (no_temporary_folder) {
    return absl::FailedPreconditionError("there is no folder for temporary files");
  }
  Violations faults;
  DataCounts file_counts;
  file_counts.files = 1;
  LEMO_ASSIGN_OR_RETURN(std::unique_ptr<CacheWriter> writer, CacheWriter::Create(path, key));
  LEMO_RETURN_IF_ERROR(
      FileTokenizer(file, text, options, writer.get(), &file_counts, &faults).Run());
  if (faults.empty() && file_counts.documents == 0) {
    faults.Add(Violation{.field = file.field,
                         .reason = "nothing is left to train on: every row was dropped",
                         .file = file.path.string()});
  }
  *counts += file_counts;
  violations->Append(faults);
  if (!faults.empty()) return std::nullopt;
  LEMO_RETURN_IF_ERROR(writer->Finish(file_counts));
  absl::Cleanup discard = [&] {
    if (!keep) ::unlink(path.c_str());
  };
  LEMO_ASSIGN_OR_RETURN(TokenCache cache, TokenCache::Open(path, key));
  return std::make_optional(std::move(cache));
}

}  // namespace

absl::StatusOr<Dataset> Dataset::Open(const std::vector<lemo::v1::DataFile>& files,
                                      const text::ModelText& text, const DatasetOptions& options,
                                      DataCounts* counts, Violations* violations) {
  Dataset dataset;
  Violations faults;
  if (options.max_length < 2) faults.Add("data.max_length", "must be at least 2");
  if (files.empty()) faults.Add(options.field, "names no files");
  if (faults.empty()) CheckSpecialTokens(text, options, &faults);
  const bool usable = faults.empty();
  for (size_t i = 0; usable && i < files.size(); ++i) {
    const std::string field = absl::StrCat(options.field, "[", i, "]");
    const std::optional<RowFormat> format = RowFormatFromName(files[i].format());
    if (!format) {
      faults.Add(field + ".format",
                 absl::StrCat("\"", files[i].format(),
                              "\" is none of auto, chat, completion, text, book"));
      continue;
    }
    const RowFile file{.path = files[i].path(), .format = *format, .field = field};
    absl::StatusOr<std::optional<TokenCache>> cache =
        OpenFile(file, text, options, &dataset.counts_, &faults);
    if (!cache.ok()) {
      *counts = dataset.counts_;
      violations->Append(faults);
      return absl::Status(cache.status().code(),
                          absl::StrCat("data.cache_dir: ", cache.status().message()));
    }
    if (!cache->has_value()) continue;
    dataset.paths_.push_back(files[i].path());
    dataset.starts_.push_back(dataset.rows() + (*cache)->documents());
    dataset.caches_.push_back(**std::move(cache));
  }
  *counts = dataset.counts_;
  violations->Append(faults);
  LEMO_RETURN_IF_ERROR(faults.ToStatus());
  return dataset;
}

size_t Dataset::FileOf(int64_t i) const {
  return static_cast<size_t>(std::upper_bound(starts_.begin(), starts_.end(), i) - starts_.begin() -
                             1);
}

Document Dataset::row(int64_t i) const {
  const size_t file = FileOf(i);
  const int64_t document = i - starts_[file];
  const DocumentRecord& record = caches_[file].record(document);
  return {.tokens = caches_[file].tokens(document),
          .trained = caches_[file].trained(document),
          .labels = record.labels,
          .file = static_cast<int64_t>(file),
          .line = record.line};
}

int64_t Dataset::length(int64_t i) const {
  const size_t file = FileOf(i);
  return caches_[file].record(i - starts_[file]).length;
}

}  // namespace lemo::train
