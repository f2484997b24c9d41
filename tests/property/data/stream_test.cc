// Properties of the training stream on random data sets. A failure prints the seed.
#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/unit/data/scratch.h"
#include "worker/train/data/batches.h"
#include "worker/train/data/random.h"
#include "worker/train/data/sequence_order.h"
#include "worker/train/data/shares.h"

namespace lemo::train {
namespace {

constexpr int64_t kMaxLength = 40;
constexpr PositionSkip kSkip = {.target = 1000, .chunks = 3};

// Documents whose text names them, so that they can be told apart.
Dataset RandomData(const Scratch& scratch, uint32_t seed, int64_t rows) {
  std::mt19937 random(seed);
  std::string content;
  for (int64_t i = 0; i < rows; ++i) {
    const std::string name = std::to_string(i);
    const std::string tail(random() % (kMaxLength - 10), static_cast<char>('A' + random() % 26));
    content += random() % 3 == 0 ? "{\"text\": \"" + name + tail + "\"}\n"
                                 : "{\"text\": \"" + name + "\"}\n";
  }
  Opened opened = OpenData({scratch.Write("rows.jsonl", content)}, {.max_length = kMaxLength});
  EXPECT_TRUE(opened.dataset.ok()) << opened.dataset.status();
  return *std::move(opened.dataset);
}

// One epoch of a stream, as what each batch has: its documents.
struct StreamedDocument {
  std::vector<int32_t> tokens, labels, positions;

  bool operator==(const StreamedDocument&) const = default;
};
using Documents = std::vector<StreamedDocument>;

Documents Unpack(const Batch& batch) {
  Documents documents;
  for (const MicroBatch& micro : batch.micro_batches) {
    for (size_t d = 0; d + 1 < micro.document_starts.size(); ++d) {
      const auto part = [&](const std::vector<int32_t>& values) {
        return std::vector<int32_t>(values.begin() + micro.document_starts[d],
                                    values.begin() + micro.document_starts[d + 1]);
      };
      documents.push_back({part(micro.tokens), part(micro.labels), part(micro.positions)});
    }
  }
  return documents;
}

std::vector<Documents> Epoch(BatchStream* stream) {
  std::vector<Documents> batches;
  for (const int64_t epoch = stream->cursor().epoch; stream->cursor().epoch == epoch;) {
    batches.push_back(Unpack(stream->Next()));
  }
  return batches;
}

std::map<std::vector<int32_t>, int> Count(const std::vector<Documents>& batches) {
  std::map<std::vector<int32_t>, int> counts;
  for (const Documents& documents : batches) {
    for (const StreamedDocument& document : documents) ++counts[document.tokens];
  }
  return counts;
}

TEST(StreamProperty, EveryDocumentWholeAndOnceAnEpoch) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    const Scratch scratch;
    const Dataset data = RandomData(scratch, seed, 1 + seed * 17 % 150);
    std::map<std::vector<int32_t>, int> expected;
    for (int64_t i = 0; i < data.rows(); ++i) {
      const Document document = data.row(i);
      ++expected[{document.tokens.begin(), document.tokens.end()}];
    }
    for (const bool packing : {false, true}) {
      for (const int64_t batch_tokens : {0, 100}) {
        SCOPED_TRACE("seed " + std::to_string(seed) + (packing ? " packed" : "") +
                     (batch_tokens > 0 ? " by tokens" : ""));
        const BatchOptions options{.seed = seed,
                                   .max_length = kMaxLength,
                                   .packing = packing,
                                   .batch_sequences = batch_tokens > 0 ? 0 : 3,
                                   .batch_tokens = batch_tokens,
                                   .micro_batch_tokens = 64};
        BatchStream stream = *BatchStream::Create(&data, options);
        for (int64_t epoch = 0; epoch < 3; ++epoch) {
          const int64_t steps = stream.StepsInEpoch(epoch);
          const std::vector<Documents> batches = Epoch(&stream);
          EXPECT_EQ(static_cast<int64_t>(batches.size()), steps);
          EXPECT_EQ(Count(batches), expected);
        }
      }
    }
  }
}

TEST(StreamProperty, BoundsAndShapesHold) {
  for (uint32_t seed = 0; seed < 10; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    const Scratch scratch;
    const Dataset data = RandomData(scratch, seed, 120);
    for (const int64_t micro_batch_tokens : {10, 40, 64, 1000}) {
      BatchStream stream = *BatchStream::Create(&data, {.seed = seed,
                                                        .max_length = kMaxLength,
                                                        .packing = true,
                                                        .batch_sequences = 5,
                                                        .micro_batch_tokens = micro_batch_tokens});
      int64_t labels = 0, tokens = 0;
      while (stream.cursor().epoch == 0) {
        const Batch batch = stream.Next();
        int64_t batch_labels = 0, batch_tokens = 0;
        for (const MicroBatch& micro : batch.micro_batches) {
          const auto rows = static_cast<size_t>(micro.rows());
          EXPECT_LE(micro.rows(), stream.MaxMicroBatchRows());
          EXPECT_LE(micro.rows(), std::max(micro_batch_tokens, kMaxLength));
          ASSERT_EQ(micro.labels.size(), rows);
          ASSERT_EQ(micro.positions.size(), rows);
          EXPECT_EQ(micro.document_starts.front(), 0);
          EXPECT_EQ(micro.document_starts.back(), micro.rows());
          EXPECT_TRUE(std::is_sorted(micro.document_starts.begin(), micro.document_starts.end()));
          for (size_t d = 0; d + 1 < micro.document_starts.size(); ++d) {
            for (int32_t row = micro.document_starts[d]; row < micro.document_starts[d + 1];
                 ++row) {
              const auto at = static_cast<size_t>(row);
              EXPECT_EQ(micro.positions[at], row - micro.document_starts[d]);
              const bool last = row + 1 == micro.document_starts[d + 1];
              EXPECT_EQ(micro.labels[at], last ? kIgnoreLabel : micro.tokens[at + 1]);
              batch_labels += last ? 0 : 1;
            }
          }
          batch_tokens += micro.rows();
        }
        EXPECT_EQ(batch.labelled_tokens, batch_labels);
        EXPECT_EQ(batch.tokens, batch_tokens);
        labels += batch_labels;
        tokens += batch_tokens;
      }
      EXPECT_EQ(labels, data.labels());
      EXPECT_EQ(tokens, data.tokens());
    }
  }
}

TEST(StreamProperty, BatchesDoNotDependOnMicroBatching) {
  const Scratch scratch;
  const Dataset data = RandomData(scratch, 5, 200);
  const auto epochs = [&](int64_t micro_batch_tokens) {
    BatchStream stream = *BatchStream::Create(&data, {.seed = 9,
                                                      .max_length = kMaxLength,
                                                      .batch_sequences = 4,
                                                      .micro_batch_tokens = micro_batch_tokens,
                                                      .skip = kSkip});
    std::vector<Documents> batches = Epoch(&stream);
    for (Documents& documents : Epoch(&stream)) batches.push_back(std::move(documents));
    return batches;
  };
  const std::vector<Documents> expected = epochs(0);
  for (const int64_t micro_batch_tokens : {1, 41, 80, 10'000}) {
    EXPECT_EQ(epochs(micro_batch_tokens), expected) << micro_batch_tokens;
  }
}

// The shares of a batch are the batch: every document in one of them, with its own place and
// positions, and the same counts, places and rounds told to all.
TEST(StreamProperty, SharesAreTheWholeBatch) {
  const Scratch scratch;
  const Dataset data = RandomData(scratch, 9, 150);
  for (const int shares : {1, 2, 3, 7}) {
    SCOPED_TRACE(shares);
    const BatchOptions whole{.seed = 4,
                             .max_length = kMaxLength,
                             .batch_sequences = 5,
                             .micro_batch_tokens = 64,
                             .attention_length = 50,
                             .skip = kSkip};
    BatchStream all = *BatchStream::Create(&data, whole);
    std::vector<BatchStream> streams;
    for (int share = 0; share < shares; ++share) {
      BatchOptions options = whole;
      options.share = share;
      options.shares = shares;
      streams.push_back(*BatchStream::Create(&data, options));
    }
    for (int step = 0; step < 40; ++step) {
      const Batch batch = all.Next();
      // Place, row of the data, last position.
      using Placed = std::tuple<int64_t, int64_t, int32_t>;
      std::set<Placed> expected, found;
      int64_t place = 0, rounds = 0;
      const auto add = [](const Batch& part, std::set<Placed>* into) {
        for (const MicroBatch& micro : part.micro_batches) {
          EXPECT_LE(micro.rows(), 64);
          ASSERT_EQ(micro.document_places.size(), micro.document_rows.size());
          for (size_t d = 0; d < micro.document_rows.size(); ++d) {
            const int32_t last = micro.positions[micro.document_starts[d + 1] - 1];
            EXPECT_TRUE(
                into->emplace(micro.document_places[d], micro.document_rows[d], last).second);
          }
        }
      };
      add(batch, &expected);
      for (const auto& [at, row, last] : expected) {
        EXPECT_EQ(at, place);
        place += data.length(row);
      }
      EXPECT_EQ(place, batch.tokens);
      for (BatchStream& stream : streams) {
        const Batch part = stream.Next();
        EXPECT_EQ(part.tokens, batch.tokens);
        EXPECT_EQ(part.labelled_tokens, batch.labelled_tokens);
        EXPECT_EQ(part.sequences, batch.sequences);
        add(part, &found);
        rounds = std::max<int64_t>(rounds, std::ssize(part.micro_batches));
        EXPECT_GE(part.rounds, std::ssize(part.micro_batches));
        if (&stream == &streams.back()) {
          EXPECT_EQ(part.rounds, rounds);
        }
      }
      EXPECT_EQ(found, expected);
    }
  }
}

// The dearest share is beyond the mean by less than one sequence.
TEST(ShareProperty, NoShareIsMuchDearer) {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const int shares = 1 + static_cast<int>(random() % 8);
    std::vector<double> costs(random() % 40);
    for (double& cost : costs) cost = 1 + static_cast<double>(random() % 1000);
    const std::vector<int> share_of = ShareOut(costs, shares);
    ASSERT_EQ(share_of.size(), costs.size());
    std::vector<double> loads(static_cast<size_t>(shares));
    double sum = 0, dearest = 0;
    for (size_t i = 0; i < costs.size(); ++i) {
      ASSERT_GE(share_of[i], 0);
      ASSERT_LT(share_of[i], shares);
      loads[static_cast<size_t>(share_of[i])] += costs[i];
      sum += costs[i];
      dearest = std::max(dearest, costs[i]);
    }
    const double worst = *std::max_element(loads.begin(), loads.end());
    EXPECT_LE(worst, sum / shares + dearest + 1e-9);
    EXPECT_EQ(ShareOut(costs, shares), share_of);
  }
}

TEST(ShareProperty, CostGrowsWithTheSquareBeyondTheLength) {
  EXPECT_EQ(SequenceCost(std::vector<int64_t>{10, 20}, 0), 30);
  EXPECT_EQ(SequenceCost(std::vector<int64_t>{10, 20}, 10), 30 + 10 + 40);
}

TEST(StreamProperty, OrderComesFromSeedAndEpoch) {
  const Scratch scratch;
  const Dataset data = RandomData(scratch, 5, 200);
  const auto stream = [&](uint64_t seed) {
    return *BatchStream::Create(
        &data, {.seed = seed, .max_length = kMaxLength, .packing = false, .batch_sequences = 4});
  };
  BatchStream a = stream(1), again = stream(1), other = stream(2);
  const std::vector<Documents> first = Epoch(&a);
  EXPECT_EQ(first, Epoch(&again));
  EXPECT_NE(first, Epoch(&other));
  EXPECT_NE(first, Epoch(&a));
}

TEST(StreamProperty, ResumedFromAnyCursorItIsTheUnbrokenStream) {
  for (const bool packing : {false, true}) {
    for (const int64_t batch_tokens : {0, 90}) {
      const Scratch scratch;
      const Dataset data = RandomData(scratch, 8, 130);
      const BatchOptions options{.seed = 4,
                                 .max_length = kMaxLength,
                                 .packing = packing,
                                 .batch_sequences = batch_tokens > 0 ? 0 : 3,
                                 .batch_tokens = batch_tokens,
                                 .skip = kSkip};
      BatchStream unbroken = *BatchStream::Create(&data, options);
      std::vector<DataCursor> cursors;
      std::vector<Documents> batches;
      while (unbroken.cursor().epoch < 3) {
        cursors.push_back(unbroken.cursor());
        batches.push_back(Unpack(unbroken.Next()));
      }
      BatchStream resumed = *BatchStream::Create(&data, options);
      for (size_t i = 0; i < cursors.size(); ++i) {
        ASSERT_TRUE(resumed.Seek(cursors[i]).ok());
        for (size_t j = i; j < std::min(i + 3, cursors.size()); ++j) {
          ASSERT_EQ(resumed.cursor().epoch, cursors[j].epoch);
          ASSERT_EQ(resumed.cursor().sequence, cursors[j].sequence);
          ASSERT_EQ(Unpack(resumed.Next()), batches[j]) << "from cursor " << i << ", batch " << j;
        }
      }
    }
  }
}

// Skipping moves positions and nothing else, and draws anew for every document, epoch and seed.
TEST(StreamProperty, SkippedPositionsAreTheDocumentsOwn) {
  const Scratch scratch;
  const Dataset data = RandomData(scratch, 6, 100);
  const auto stream = [&](uint64_t seed, const PositionSkip& skip) {
    return *BatchStream::Create(&data, {.seed = seed,
                                        .max_length = kMaxLength,
                                        .packing = false,
                                        .batch_sequences = 100,
                                        .skip = skip});
  };
  using Positions = std::map<std::vector<int32_t>, std::vector<int32_t>>;  // by tokens
  const auto positions = [](const Documents& documents) {
    Positions found;
    for (const StreamedDocument& each : documents) found[each.tokens] = each.positions;
    return found;
  };
  BatchStream plain = stream(1, {}), skips = stream(1, kSkip), other = stream(2, kSkip);
  const Documents without = Unpack(plain.Next());
  Documents first = Unpack(skips.Next());
  const Positions drawn = positions(first);
  EXPECT_NE(drawn, positions(Unpack(skips.Next())));
  EXPECT_NE(drawn, positions(Unpack(other.Next())));
  std::set<int32_t> last;
  for (size_t i = 0; i < first.size(); ++i) {
    EXPECT_LT(first[i].positions.back(), kSkip.target);
    last.insert(first[i].positions.back());
    first[i].positions = without[i].positions;
  }
  EXPECT_GT(last.size(), 80u);
  EXPECT_EQ(first, without);
}

// Several windows, which RandomData above does not reach.
TEST(StreamProperty, ManyWindows) {
  const Scratch scratch;
  const Dataset data = RandomData(scratch, 3, 2 * SequenceOrder::kWindow + 100);
  for (const bool packing : {false, true}) {
    SequenceOrder order(&data, {.seed = 11, .max_length = kMaxLength, .packing = packing});
    std::vector<std::vector<int64_t>> first;
    std::vector<int> seen(static_cast<size_t>(data.rows()));
    for (; order.epoch() == 0; order.Advance()) {
      int64_t tokens = 0;
      for (const int64_t document : order.documents()) {
        ++seen[static_cast<size_t>(document)];
        tokens += data.length(document);
      }
      EXPECT_LE(tokens, kMaxLength);
      EXPECT_EQ(tokens, order.tokens());
      EXPECT_LE(tokens, order.longest_sequence());
      first.push_back(order.documents());
    }
    EXPECT_EQ(std::count(seen.begin(), seen.end(), 1), data.rows());
    EXPECT_EQ(static_cast<int64_t>(first.size()), order.sequences_per_epoch());
    for (int64_t at = 0; at < order.sequences_per_epoch(); at += 997) {
      order.Seek(0, at);
      EXPECT_EQ(order.documents(), first[static_cast<size_t>(at)]) << at;
    }
    // Far apart in the file and together in an epoch: the order is not the file's.
    int64_t neighbours = 0;
    for (size_t i = 1; i < first.size(); ++i) {
      neighbours += std::abs(first[i][0] - first[i - 1][0]) == 1 ? 1 : 0;
    }
    EXPECT_LT(neighbours, static_cast<int64_t>(first.size()) / 100);
  }
}

TEST(PackingProperty, WholeItemsOnceWithinCapacity) {
  for (uint32_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    const int64_t capacity = 1 + static_cast<int64_t>(random() % 60);
    std::vector<int64_t> lengths(random() % 80);
    int64_t total = 0;
    for (int64_t& length : lengths) {
      length = 1 + static_cast<int64_t>(random()) % capacity;
      total += length;
    }
    const std::vector<std::vector<int32_t>> bins = PackBestFit(lengths, capacity);
    std::vector<int> seen(lengths.size());
    for (const std::vector<int32_t>& bin : bins) {
      EXPECT_FALSE(bin.empty());
      int64_t tokens = 0;
      for (const int32_t item : bin) {
        ++seen[static_cast<size_t>(item)];
        tokens += lengths[static_cast<size_t>(item)];
      }
      EXPECT_LE(tokens, capacity);
    }
    EXPECT_EQ(std::count(seen.begin(), seen.end(), 1), static_cast<int64_t>(lengths.size()));
    // Two bins that are less than half full would have been one.
    EXPECT_LE(static_cast<int64_t>(bins.size()), 2 * total / capacity + 1);
  }
}

TEST(RandomProperty, PermutationsArePermutations) {
  for (const uint64_t size : {1u, 2u, 3u, 4u, 5u, 16u, 17u, 1000u, 65537u}) {
    std::set<uint64_t> images;
    const Permutation permutation(size, size * 31);
    for (uint64_t i = 0; i < size; ++i) {
      const uint64_t image = permutation(i);
      ASSERT_LT(image, size);
      images.insert(image);
    }
    EXPECT_EQ(images.size(), size);
  }
}

TEST(RandomProperty, ShufflesAreEven) {
  // Chi-square over the 24 orders of four items, 24,000 draws: 23 degrees of freedom, 99.9 %
  // below 49.7.
  std::map<std::vector<int>, int> counts;
  for (uint64_t key = 0; key < 24'000; ++key) {
    std::vector<int> items = {0, 1, 2, 3};
    Shuffle(MixBits(key), &items);
    ++counts[items];
  }
  ASSERT_EQ(counts.size(), 24u);
  double chi_square = 0;
  for (const auto& [order, count] : counts)
    chi_square += (count - 1000.0) * (count - 1000.0) / 1000;
  EXPECT_LT(chi_square, 49.7);
}

// Checkpoints hold a place in this order: it must never change.
TEST(RandomProperty, OrderIsPinned) {
  std::vector<int> items = {0, 1, 2, 3, 4, 5, 6, 7};
  Shuffle(42, &items);
  EXPECT_EQ(items, (std::vector<int>{5, 4, 0, 2, 7, 1, 3, 6}));
  std::vector<uint64_t> images;
  const Permutation permutation(10, 42);
  for (uint64_t i = 0; i < 10; ++i) images.push_back(permutation(i));
  EXPECT_EQ(images, (std::vector<uint64_t>{9, 7, 3, 6, 0, 1, 8, 4, 2, 5}));
}

}  // namespace
}  // namespace lemo::train
