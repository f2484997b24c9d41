#include "common/safetensors.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"

namespace lemo {
namespace {

// The reference implementation's bound on the header.
constexpr uint64_t kHeaderBytesMax = 100'000'000;
constexpr size_t kLengthBytes = 8;
constexpr std::string_view kMetadataKey = "__metadata__";

struct TypeInfo {
  TensorType type;
  std::string_view name;
  int64_t bytes;
};

constexpr std::array<TypeInfo, 10> kTypes = {{{TensorType::kF64, "F64", 8},
                                              {TensorType::kF32, "F32", 4},
                                              {TensorType::kF16, "F16", 2},
                                              {TensorType::kBF16, "BF16", 2},
                                              {TensorType::kI64, "I64", 8},
                                              {TensorType::kI32, "I32", 4},
                                              {TensorType::kI16, "I16", 2},
                                              {TensorType::kI8, "I8", 1},
                                              {TensorType::kU8, "U8", 1},
                                              {TensorType::kBool, "BOOL", 1}}};

const TypeInfo& InfoOf(TensorType type) {
  return *std::find_if(kTypes.begin(), kTypes.end(),
                       [type](const TypeInfo& info) { return info.type == type; });
}

// A name out of a file, fit for a message: short, and ASCII whatever it held.
std::string Quoted(std::string_view text) {
  constexpr size_t kShown = 160;
  std::string out = absl::StrCat("\"", absl::CHexEscape(std::string(text.substr(0, kShown))));
  absl::StrAppend(&out, text.size() > kShown ? "...\"" : "\"");
  return out;
}

// Bytes of a tensor of this shape, or nullopt when a dimension is negative or the product
// overflows.
std::optional<int64_t> ShapeBytes(const std::vector<int64_t>& shape, TensorType type) {
  int64_t bytes = ElementBytes(type);
  for (const int64_t size : shape) {
    if (size < 0 || __builtin_mul_overflow(bytes, size, &bytes)) return std::nullopt;
  }
  return bytes;
}

struct HeaderEntry {
  std::string name;
  std::optional<TensorType> type;
  std::optional<std::vector<int64_t>> shape;
  std::optional<std::vector<int64_t>> offsets;
};

// Reads the header as a stream of events and stops at the first that does not belong, so that
// neither deep nesting nor a long list costs more memory than the header itself.
class HeaderReader final : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::vector<HeaderEntry> entries;
  std::map<std::string, std::string> metadata;

  const std::string& error() const { return error_; }

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a boolean"); }
  bool number_float(number_float_t, const string_t&) override {
    return Unexpected("a number with a fraction or out of range");
  }
  bool binary(binary_t&) override { return Unexpected("binary data"); }

  bool number_integer(number_integer_t value) override {
    return list_ == nullptr ? Unexpected("a number")
                            : Fail(absl::StrCat("has the negative number ", value));
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (list_ == nullptr) return Unexpected("a number");
    if (value > static_cast<number_unsigned_t>(INT64_MAX)) {
      return Fail(absl::StrCat("has the number ", value, ", which is out of range"));
    }
    list_->push_back(static_cast<int64_t>(value));
    return true;
  }

  bool string(string_t& value) override {
    if (place_ == Place::kMetadata) {
      if (!metadata.emplace(key_, std::move(value)).second) {
        return Fail(absl::StrCat("has the key ", Quoted(key_), " twice"));
      }
      return true;
    }
    if (place_ != Place::kTensor || list_ != nullptr || key_ != "dtype") {
      return Unexpected("a string");
    }
    const auto* info = std::find_if(kTypes.begin(), kTypes.end(),
                                    [&](const TypeInfo& known) { return known.name == value; });
    if (info == kTypes.end()) {
      return Fail(absl::StrCat(
          "has the unknown dtype ", Quoted(value),
          "; known: ", absl::StrJoin(kTypes, ", ", [](std::string* out, const TypeInfo& known) {
            out->append(known.name);
          })));
    }
    if (entries.back().type.has_value()) return Fail("has the key \"dtype\" twice");
    entries.back().type = info->type;
    return true;
  }

  bool start_object(std::size_t) override {
    switch (place_) {
      case Place::kStart:
        place_ = Place::kTop;
        return true;
      case Place::kTop:
        if (key_ == kMetadataKey) {
          if (seen_metadata_) return Fail("appears twice");
          seen_metadata_ = true;
          place_ = Place::kMetadata;
        } else {
          entries.push_back({.name = key_});
          place_ = Place::kTensor;
        }
        return true;
      default:
        return Unexpected("an object");
    }
  }

  bool key(string_t& value) override {
    if (place_ == Place::kTop) subject_ = value;
    if (place_ == Place::kTensor && value != "dtype" && value != "shape" &&
        value != "data_offsets") {
      return Fail(absl::StrCat("has the unknown key ", Quoted(value)));
    }
    key_ = std::move(value);
    return true;
  }

  bool end_object() override {
    if (place_ == Place::kTensor) {
      const HeaderEntry& entry = entries.back();
      if (!entry.type) return Fail("lacks \"dtype\"");
      if (!entry.shape) return Fail("lacks \"shape\"");
      if (!entry.offsets) return Fail("lacks \"data_offsets\"");
      if (entry.offsets->size() != 2) {
        return Fail(absl::StrCat("has ", entry.offsets->size(), " data_offsets, not 2"));
      }
    }
    place_ = place_ == Place::kTop ? Place::kEnd : Place::kTop;
    return true;
  }

  bool start_array(std::size_t) override {
    if (place_ != Place::kTensor || list_ != nullptr || key_ == "dtype")
      return Unexpected("a list");
    std::optional<std::vector<int64_t>>& list =
        key_ == "shape" ? entries.back().shape : entries.back().offsets;
    if (list.has_value()) return Fail(absl::StrCat("has the key ", Quoted(key_), " twice"));
    list_ = &list.emplace();
    return true;
  }

  bool end_array() override {
    list_ = nullptr;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::json::exception& exception) override {
    error_ = absl::StrCat("the header is not JSON at its byte ", position, ": ",
                          absl::CHexEscape(std::string(exception.what()).substr(0, 200)));
    return false;
  }

 private:
  enum class Place { kStart, kTop, kTensor, kMetadata, kEnd };

  bool Fail(const std::string& what) {
    error_ = subject_.empty()           ? absl::StrCat("the header ", what)
             : subject_ == kMetadataKey ? absl::StrCat("__metadata__ ", what)
                                        : absl::StrCat("tensor ", Quoted(subject_), " ", what);
    return false;
  }

  bool Unexpected(const std::string& what) {
    if (place_ == Place::kStart) return Fail(absl::StrCat("is ", what, ", not an object"));
    return Fail(absl::StrCat("has ", what, " at ", Quoted(key_), " where the format has none"));
  }

  Place place_ = Place::kStart;
  std::string subject_;  // the key of the top object that is being read
  std::string key_;      // the innermost key
  bool seen_metadata_ = false;
  std::vector<int64_t>* list_ = nullptr;
  std::string error_;
};

absl::Status CheckLayout(const std::vector<HeaderEntry>& entries, size_t data_bytes) {
  struct Range {
    int64_t begin, end;
    const std::string* name;
  };
  std::vector<Range> ranges;
  ranges.reserve(entries.size());
  for (const HeaderEntry& entry : entries) {
    const int64_t begin = (*entry.offsets)[0];
    const int64_t end = (*entry.offsets)[1];
    if (begin > end) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", Quoted(entry.name), " begins at ",
                                                     begin, " and ends before that, at ", end));
    }
    if (static_cast<uint64_t>(end) > data_bytes) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", Quoted(entry.name), " ends at ",
                                                     end, " but the file holds ", data_bytes,
                                                     " bytes of data"));
    }
    const std::optional<int64_t> expected = ShapeBytes(*entry.shape, *entry.type);
    if (!expected.has_value() || *expected != end - begin) {
      std::vector<int64_t> shown(entry.shape->begin(),
                                 entry.shape->begin() + std::min<size_t>(entry.shape->size(), 16));
      return absl::InvalidArgumentError(absl::StrCat(
          "tensor ", Quoted(entry.name), " of type ", std::string(TensorTypeName(*entry.type)),
          " and shape [", absl::StrJoin(shown, ", "),
          shown.size() < entry.shape->size() ? ", ...] " : "] ",
          expected.has_value() ? absl::StrCat("needs ", *expected, " bytes") : "overflows",
          " but has ", end - begin));
    }
    ranges.push_back({begin, end, &entry.name});
  }
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) {
    return std::tie(a.begin, a.end, *a.name) < std::tie(b.begin, b.end, *b.name);
  });
  int64_t reached = 0;
  for (const Range& range : ranges) {
    if (range.begin != reached) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", Quoted(*range.name), " begins at ", range.begin,
                       " but the data before it ends at ", reached,
                       range.begin < reached ? ": they overlap" : ": there is a hole"));
    }
    reached = range.end;
  }
  if (static_cast<uint64_t>(reached) != data_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the tensors end at ", reached, " but the file holds ", data_bytes, " bytes of data"));
  }
  return absl::OkStatus();
}

absl::Status WriteAll(int fd, std::string_view data, const std::filesystem::path& path) {
  while (!data.empty()) {
    const ssize_t wrote = ::write(fd, data.data(), data.size());
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) {
      return ErrnoStatus(errno, absl::StrCat("write ", data.size(), " more bytes to"), path);
    }
    data.remove_prefix(static_cast<size_t>(wrote));
  }
  return absl::OkStatus();
}

using TensorEntry = std::pair<const std::string, TensorView>;

absl::StatusOr<std::string> MakeHeader(const std::vector<const TensorEntry*>& order,
                                       const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[std::string(kMetadataKey)] = metadata;
  int64_t offset = 0;
  for (const TensorEntry* entry : order) {
    const auto& [name, view] = *entry;
    const std::optional<int64_t> bytes = ShapeBytes(view.shape, view.type);
    if (name == kMetadataKey || !bytes.has_value() ||
        static_cast<uint64_t>(*bytes) != view.bytes.size()) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", Quoted(name), " of shape [",
                                                     absl::StrJoin(view.shape, ", "), "] has ",
                                                     view.bytes.size(), " bytes"));
    }
    // A list by hand: ordered_json looks for the key in all of its entries at each insertion.
    header.get_ref<nlohmann::ordered_json::object_t&>().emplace_back(
        name, nlohmann::ordered_json{{"dtype", TensorTypeName(view.type)},
                                     {"shape", view.shape},
                                     {"data_offsets", {offset, offset + *bytes}}});
    offset += *bytes;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const nlohmann::json::exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat("a name or metadata is not UTF-8: ", absl::CHexEscape(error.what())));
  }
  text.append((kLengthBytes - text.size() % kLengthBytes) % kLengthBytes, ' ');
  if (text.size() > kHeaderBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("a header of ", text.size(), " bytes is over the format's limit"));
  }
  return text;
}

}  // namespace

int64_t ElementBytes(TensorType type) { return InfoOf(type).bytes; }

std::string_view TensorTypeName(TensorType type) { return InfoOf(type).name; }

absl::Status ParseSafetensors(std::string_view bytes, std::map<std::string, TensorView>* tensors,
                              std::map<std::string, std::string>* metadata) {
  tensors->clear();
  metadata->clear();
  if (bytes.size() < kLengthBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a file of ", bytes.size(), " bytes is too short for a safetensors header"));
  }
  uint64_t length = 0;
  for (size_t i = kLengthBytes; i-- > 0;) length = length << 8 | static_cast<uint8_t>(bytes[i]);
  if (length > kHeaderBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the header's length, ", length, ", is over the format's limit of ", kHeaderBytesMax));
  }
  if (length > bytes.size() - kLengthBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the header's length, ", length, ", is more than the ",
                     bytes.size() - kLengthBytes, " bytes that follow: the file is truncated"));
  }
  const std::string_view header = bytes.substr(kLengthBytes, length);
  const std::string_view data = bytes.substr(kLengthBytes + length);
  // The parser would take a zero byte for the end of the text.
  if (header.find('\0') != std::string_view::npos) {
    return absl::InvalidArgumentError("the header is not JSON: it holds a zero byte");
  }
  HeaderReader reader;
  if (!nlohmann::json::sax_parse(header.begin(), header.end(), &reader)) {
    return absl::InvalidArgumentError(reader.error());
  }
  LEMO_RETURN_IF_ERROR(CheckLayout(reader.entries, data.size()));
  std::map<std::string, TensorView> found;
  for (HeaderEntry& entry : reader.entries) {
    const int64_t begin = (*entry.offsets)[0];
    const int64_t end = (*entry.offsets)[1];
    const auto [at, inserted] = found.try_emplace(
        std::move(entry.name), TensorView{.type = *entry.type,
                                          .shape = std::move(*entry.shape),
                                          .bytes = data.substr(begin, end - begin)});
    if (!inserted) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", Quoted(at->first), " appears twice"));
    }
  }
  *tensors = std::move(found);
  *metadata = std::move(reader.metadata);
  return absl::OkStatus();
}

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::filesystem::path& path) {
  SafetensorsFile file;
  file.path_ = path;
  LEMO_ASSIGN_OR_RETURN(file.file_, MappedFile::Open(path));
  const absl::Status status = ParseSafetensors(file.file_.bytes(), &file.tensors_, &file.metadata_);
  if (!status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path.string(), ": ", status.message()));
  }
  return file;
}

absl::Status WriteSafetensors(const std::filesystem::path& path,
                              const std::map<std::string, TensorView>& tensors,
                              const std::map<std::string, std::string>& metadata) {
  std::vector<const TensorEntry*> order;
  order.reserve(tensors.size());
  for (const TensorEntry& entry : tensors) order.push_back(&entry);
  std::stable_sort(order.begin(), order.end(), [](const TensorEntry* a, const TensorEntry* b) {
    return ElementBytes(a->second.type) > ElementBytes(b->second.type);
  });
  absl::StatusOr<std::string> header = MakeHeader(order, metadata);
  if (!header.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot write ", path.string(), ": ", header.status().message()));
  }
  std::string length(kLengthBytes, '\0');
  for (size_t i = 0; i < kLengthBytes; ++i) {
    length[i] = static_cast<char>(static_cast<uint64_t>(header->size()) >> (8 * i));
  }

  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoStatus(errno, "create", path);
  absl::Cleanup close = [fd] { ::close(fd); };
  LEMO_RETURN_IF_ERROR(WriteAll(fd, length, path));
  LEMO_RETURN_IF_ERROR(WriteAll(fd, *header, path));
  for (const TensorEntry* entry : order) {
    LEMO_RETURN_IF_ERROR(WriteAll(fd, entry->second.bytes, path));
  }
  if (::fsync(fd) != 0) return ErrnoStatus(errno, "sync", path);
  return absl::OkStatus();
}

absl::Status WriteSafetensorsAtomic(const std::filesystem::path& path,
                                    const std::map<std::string, TensorView>& tensors,
                                    const std::map<std::string, std::string>& metadata) {
  const std::filesystem::path beside =
      path.parent_path() / absl::StrCat(".", path.filename().string(), ".", ::getpid(), ".tmp");
  absl::Cleanup discard = [&beside] { ::unlink(beside.c_str()); };
  LEMO_RETURN_IF_ERROR(WriteSafetensors(beside, tensors, metadata));
  if (::rename(beside.c_str(), path.c_str()) != 0) return ErrnoStatus(errno, "rename to", path);
  std::move(discard).Cancel();
  return SyncPath(path.has_parent_path() ? path.parent_path() : std::filesystem::path("."));
}

}  // namespace lemo
