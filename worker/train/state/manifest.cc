#include "worker/train/state/manifest.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/status_macros.h"

namespace lemo::train {
namespace {

using Json = nlohmann::json;

constexpr const char* kFormat = "lemo.checkpoint";
constexpr int64_t kVersion = 1;
constexpr int64_t kManifestBytesMax = 16 << 20;
// A manifest nests three deep; the bound keeps hostile nesting out of recursive code.
constexpr int kDepthMax = 8;

std::string Checksum(const Json& members) {
  return Sha256Hex(members.dump(-1, ' ', false, Json::error_handler_t::replace));
}

bool IsPlainName(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

// The member as an integer that is not negative.
std::optional<int64_t> Count(const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number_integer()) return std::nullopt;
  const int64_t value = found->get<int64_t>();
  return value < 0 ? std::nullopt : std::optional(value);
}

std::optional<std::string> Text(const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_string()) return std::nullopt;
  return found->get<std::string>();
}

}  // namespace

std::string ManifestToJson(const Manifest& manifest) {
  Json files = Json::object();
  for (const auto& [name, file] : manifest.files) {
    files[name] = {{"size", file.size}, {"sha256", file.sha256}};
  }
  Json json = {{"format", kFormat},           {"version", kVersion},  {"step", manifest.step},
               {"created", manifest.created}, {"eval_loss", nullptr}, {"files", std::move(files)}};
  if (manifest.eval_loss.has_value() && std::isfinite(*manifest.eval_loss)) {
    json["eval_loss"] = *manifest.eval_loss;
  }
  json["checksum"] = Checksum(json);
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

absl::StatusOr<Manifest> ParseManifest(std::string_view text, const std::filesystem::path& path) {
  const auto fault = [&path](const std::string& reason) {
    return absl::InvalidArgumentError(absl::StrCat(path.string(), ": ", reason));
  };
  bool too_deep = false;
  const auto bound_depth = [&too_deep](int depth, Json::parse_event_t, Json&) {
    too_deep = too_deep || depth > kDepthMax;
    return !too_deep;
  };
  Json json = Json::parse(text, bound_depth, /*allow_exceptions=*/false);
  if (too_deep || !json.is_object()) return fault("is not a manifest, or torn");
  if (Text(json, "format") != kFormat) return fault("is not the manifest of a checkpoint");
  const std::optional<int64_t> version = Count(json, "version");
  if (!version.has_value()) return fault("has no version");
  if (*version != kVersion) {
    return fault(
        absl::StrCat("has format version ", *version, ", this program reads version ", kVersion));
  }
  const std::optional<std::string> checksum = Text(json, "checksum");
  json.erase("checksum");
  if (!checksum.has_value() || *checksum != Checksum(json)) {
    return fault("does not match its own checksum");
  }

  Manifest manifest;
  const std::optional<int64_t> step = Count(json, "step");
  const std::optional<std::string> created = Text(json, "created");
  const auto eval_loss = json.find("eval_loss");
  const auto files = json.find("files");
  if (!step.has_value() || !created.has_value() || eval_loss == json.end() ||
      !(eval_loss->is_null() || eval_loss->is_number()) || files == json.end() ||
      !files->is_object()) {
    return fault("lacks step, created, eval_loss or files");
  }
  manifest.step = *step;
  manifest.created = *created;
  if (eval_loss->is_number()) manifest.eval_loss = eval_loss->get<double>();
  for (const auto& [name, entry] : files->items()) {
    if (!IsPlainName(name)) return fault(absl::StrCat("names a file \"", name, "\""));
    if (!entry.is_object()) return fault(absl::StrCat("files.", name, " is not an object"));
    const std::optional<int64_t> size = Count(entry, "size");
    std::optional<std::string> sha256 = Text(entry, "sha256");
    if (!size.has_value() || !sha256.has_value()) {
      return fault(absl::StrCat("files.", name, " lacks size or sha256"));
    }
    manifest.files[name] = {.size = *size, .sha256 = *std::move(sha256)};
  }
  return manifest;
}

absl::StatusOr<Manifest> ReadManifest(const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / kManifestName;
  absl::StatusOr<std::string> text = ReadFile(path, kManifestBytesMax);
  if (absl::IsNotFound(text.status())) {
    return absl::InvalidArgumentError(
        absl::StrCat(directory.string(), " has no ", kManifestName, ": torn, or not a checkpoint"));
  }
  if (!text.ok()) return text.status();
  return ParseManifest(*text, path);
}

absl::StatusOr<Manifest::File> DescribeFile(const std::filesystem::path& path) {
  LEMO_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
  return Manifest::File{.size = static_cast<int64_t>(file.bytes().size()),
                        .sha256 = Sha256Hex(file.bytes())};
}

absl::Status VerifyFiles(const Manifest& manifest, const std::filesystem::path& directory,
                         VerifyLevel level) {
  for (const auto& [name, expected] : manifest.files) {
    const std::filesystem::path path = directory / name;
    std::error_code error;
    const auto size = std::filesystem::file_size(path, error);
    if (error) {
      return absl::InvalidArgumentError(
          absl::StrCat(path.string(), " is in the manifest but cannot be read: ", error.message()));
    }
    if (static_cast<int64_t>(size) != expected.size) {
      return absl::InvalidArgumentError(
          absl::StrCat(path.string(), " has ", size, " bytes, its manifest says ", expected.size));
    }
    if (level == VerifyLevel::kSizes) continue;
    LEMO_ASSIGN_OR_RETURN(const std::string sha256, Sha256HexOfFile(path));
    if (sha256 != expected.sha256) {
      return absl::InvalidArgumentError(absl::StrCat(path.string(), " has the SHA-256 ", sha256,
                                                     ", its manifest says ", expected.sha256));
    }
  }
  return absl::OkStatus();
}

}  // namespace lemo::train
