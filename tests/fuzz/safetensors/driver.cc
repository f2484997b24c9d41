// Stands in for libFuzzer where the compiler has none: replays the seeds, then a fixed number of
// mutations of them from a fixed generator, so that a run is the same everywhere.
//
//   safetensors_fuzz [mutations [seed]]
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

std::string File(const std::string& header, const std::string& data) {
  std::string out(8, '\0');
  for (size_t i = 0; i < 8; ++i) out[i] = static_cast<char>(header.size() >> (8 * i));
  return out + header + data;
}

std::vector<std::string> Seeds() {
  return {
      "",
      File("{}", ""),
      File(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "abcdefgh"),
      File(R"({"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,1],)"
           R"("data_offsets":[0,4]},"b":{"dtype":"U8","shape":[],"data_offsets":[4,5]}})",
           "abcde"),
      File(R"({"e":{"dtype":"I64","shape":[3,0],"data_offsets":[0,0]}}    )", ""),
      File(std::string(4000, '['), ""),
  };
}

// Pieces that reach further into the format than single bytes do.
const char* const kPieces[] = {"{",
                               "}",
                               "[",
                               "]",
                               ",",
                               ":",
                               "\"t\"",
                               "\"dtype\"",
                               "-1",
                               "1e999",
                               "null",
                               "true",
                               "\"F32\"",
                               "\"shape\"",
                               "[0,4]",
                               "0",
                               "\\u0000",
                               "\"BOOL\"",
                               "\"\"",
                               "\"__metadata__\"",
                               "9223372036854775807",
                               "18446744073709551616",
                               "4294967296",
                               "\"data_offsets\""};

void SetLength(std::string& bytes, uint64_t length) {
  for (size_t i = 0; i < 8 && i < bytes.size(); ++i) {
    bytes[i] = static_cast<char>(length >> (8 * i));
  }
}

void Mutate(std::string& bytes, std::mt19937_64& random) {
  const auto below = [&random](size_t bound) { return bound == 0 ? 0 : random() % bound; };
  const size_t at = below(bytes.size() + 1);
  switch (below(8)) {
    case 0:
      if (at < bytes.size()) bytes[at] = static_cast<char>(random());
      break;
    case 1:
      if (at < bytes.size()) bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
      break;
    case 2:
      bytes.erase(at, 1 + below(16));
      break;
    case 3:
      bytes.insert(at, kPieces[below(std::size(kPieces))]);
      break;
    case 4: {  // over what is there, which keeps the length field true
      const std::string piece = kPieces[below(std::size(kPieces))];
      bytes.replace(at, std::min(piece.size(), bytes.size() - at), piece);
      break;
    }
    case 5:
      bytes.insert(at, bytes.substr(below(bytes.size()), below(64)));
      break;
    case 6:
      SetLength(bytes, bytes.size() < 8 ? 0 : bytes.size() - 8 - below(32));
      break;
    default:
      SetLength(bytes, random() >> below(64));
      break;
  }
}

}  // namespace

int main(int argc, char** argv) {
  const uint64_t mutations = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 200'000;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  std::printf("%llu mutations, seed %llu\n", static_cast<unsigned long long>(mutations),
              static_cast<unsigned long long>(seed));
  const auto run = [](const std::string& bytes) {
    // Exactly as large as the input, so that a sanitiser sees a read past its end.
    const std::vector<uint8_t> exact(bytes.begin(), bytes.end());
    LLVMFuzzerTestOneInput(exact.data(), exact.size());
  };
  const std::vector<std::string> seeds = Seeds();
  for (const std::string& bytes : seeds) run(bytes);
  std::mt19937_64 random(seed);
  for (uint64_t i = 0; i < mutations; ++i) {
    std::string bytes = seeds[random() % seeds.size()];
    for (uint64_t changes = 1 + random() % 6; changes > 0; --changes) Mutate(bytes, random);
    run(bytes);
  }
  return 0;
}
