#include "worker/train/report/block_picture.h"

#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/format.h"
#include "worker/train/report/chart.h"

namespace lemo::train {
namespace {

using lemo::v1::SelectionEvent;

constexpr int kWidth = 980;
constexpr int kLeft = 58;  // as charts have it, so that they stand in line
constexpr int kRight = 14;
constexpr int kTop = 18;
constexpr int kBottom = 24;
constexpr int kMostColumns = 448;   // of two units of width and more
constexpr int kMostDocuments = 64;  // more lines than that would hide what they divide
constexpr int kShades = 4;

int Blocks(const SelectionEvent& selection) { return selection.block_starts_size() - 1; }

// The mask of a layer's MLP, said or not.
std::string_view MlpMask(const SelectionEvent& selection, int layer) {
  return selection.mlp(layer).empty() ? selection.attention(layer) : selection.mlp(layer);
}

// First blocks of the columns, and the number of blocks at the end. No column holds blocks of two
// documents where those are divided by lines.
std::vector<int> Columns(const SelectionEvent& selection) {
  const auto& documents = selection.document_starts();
  const bool divided = documents.size() - 1 <= kMostDocuments;
  const int most = BlocksOfAColumn(selection);
  std::vector<int> columns = {0};
  for (int block = 1; block < Blocks(selection); ++block) {
    const bool begins_document = divided && std::binary_search(documents.begin(), documents.end(),
                                                               selection.block_starts(block));
    if (block - columns.back() == most || begins_document) columns.push_back(block);
  }
  columns.push_back(Blocks(selection));
  return columns;
}

double ShareKept(const SelectionEvent& selection, std::string_view mask, int begin, int end) {
  int64_t kept = 0;
  for (int block = begin; block < end; ++block) {
    if (mask[block]) kept += selection.block_starts(block + 1) - selection.block_starts(block);
  }
  return static_cast<double>(kept) / (selection.block_starts(end) - selection.block_starts(begin));
}

// From 0 for none to kShades for all; what is neither is between.
int Shade(double share) {
  return share <= 0 ? 0 : share >= 1 ? kShades : std::max(1, static_cast<int>(share * kShades));
}

// A round number of rows, at most ten of which fit.
int64_t TickRows(int64_t rows) {
  int64_t step = 64;
  while (rows / step > 10) step *= 2;
  return step;
}

}  // namespace

bool MlpDiffers(const SelectionEvent& selection) {
  return std::any_of(selection.mlp().begin(), selection.mlp().end(),
                     [](const std::string& mask) { return !mask.empty(); });
}

int BlocksOfAColumn(const SelectionEvent& selection) {
  return (Blocks(selection) + kMostColumns - 1) / kMostColumns;
}

std::string BlockPicture(const SelectionEvent& selection, const std::string& description) {
  const int layers = selection.attention_size();
  const bool two_bands = MlpDiffers(selection);
  const double pitch =
      two_bands ? std::clamp(440.0 / layers, 9.0, 28.0) : std::clamp(360.0 / layers, 6.0, 22.0);
  const double gap = pitch >= 12 ? 3 : pitch >= 9 ? 2 : 1;
  const double band = (pitch - gap) / (two_bands ? 2 : 1);
  const double bottom = kTop + pitch * layers - gap;
  const double inner = kWidth - kLeft - kRight;
  const int32_t rows = *selection.block_starts().rbegin();
  const auto px = [&](int64_t row) { return kLeft + inner * static_cast<double>(row) / rows; };
  const std::vector<int> columns = Columns(selection);

  std::string svg = absl::StrFormat(
      "<svg class=\"chart blocks\" viewBox=\"0 0 %d %.0f\" role=\"img\" aria-label=\"%s\">\n",
      kWidth, bottom + kBottom, EscapeHtml(description));
  // What was left out, and the number of the layer.
  const int apart = static_cast<int>(std::ceil(13 / pitch));
  for (int layer = 0; layer < layers; ++layer) {
    const double top = kTop + pitch * layer;
    absl::StrAppendFormat(
        &svg, "<rect class=\"out\" x=\"%d\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/>", kLeft,
        top, inner, pitch - gap);
    if (layer % apart == 0) {
      absl::StrAppendFormat(
          &svg, "<text class=\"tick\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%d</text>\n",
          kLeft - 8, top + (pitch - gap) / 2 + 4, layer);
    }
  }
  // What was kept: one path for each band and shade, of lines as thick as a band.
  for (const bool mlp : {false, true}) {
    if (mlp && !two_bands) break;
    std::string paths[kShades + 1];
    for (int layer = 0; layer < layers; ++layer) {
      const std::string_view mask =
          mlp ? MlpMask(selection, layer) : std::string_view(selection.attention(layer));
      const double middle = kTop + pitch * layer + band * (mlp ? 1.5 : 0.5);
      for (size_t from = 0; from + 1 < columns.size();) {
        const auto shade = [&](size_t column) {
          return Shade(ShareKept(selection, mask, columns[column], columns[column + 1]));
        };
        const int of_run = shade(from);
        size_t to = from + 1;
        while (to + 1 < columns.size() && shade(to) == of_run) ++to;
        if (of_run > 0) {
          const double begin = px(selection.block_starts(columns[from]));
          absl::StrAppendFormat(&paths[of_run], "M%.1f %.1fh%.1f", begin, middle,
                                px(selection.block_starts(columns[to])) - begin);
        }
        from = to;
      }
    }
    for (int shade = 1; shade <= kShades; ++shade) {
      if (paths[shade].empty()) continue;
      absl::StrAppendFormat(&svg,
                            "<g class=\"%s\"><path "
                            "style=\"stroke-width:%.1fpx;stroke-opacity:%.2f\" d=\"%s\"/></g>\n",
                            mlp ? "orange" : "blue", band, static_cast<double>(shade) / kShades,
                            paths[shade]);
    }
  }
  // Documents: a line between two, and their numbers where there is room.
  const auto& documents = selection.document_starts();
  const int count = documents.size() - 1;
  for (int i = 0; i < count && count > 1 && count <= kMostDocuments; ++i) {
    const double begin = px(documents.Get(i)), width = px(documents.Get(i + 1)) - begin;
    if (i > 0) {
      for (const char* css_class : {"divide", "mark"}) {
        absl::StrAppendFormat(&svg,
                              "<line class=\"%s\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%.1f\"/>",
                              css_class, begin, begin, kTop - 6, bottom);
      }
    }
    if (width >= 24) {
      absl::StrAppendFormat(
          &svg, "<text class=\"tick\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s%d</text>\n",
          begin + width / 2, kTop - 6, width >= 90 ? "document " : "", i + 1);
    }
  }
  for (int64_t row = 0; row <= rows; row += TickRows(rows)) {
    const double x = px(row);
    absl::StrAppendFormat(
        &svg, "<text class=\"tick\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", x,
        bottom + 17, x > kWidth - 30 ? "end" : "middle", HumanCount(row));
  }
  // Tool tips lie on top.
  for (int layer = 0; layer < layers; ++layer) {
    const auto percent = [&](std::string_view mask) {
      return absl::StrCat(Fixed(100 * ShareKept(selection, mask, 0, Blocks(selection)), 1), " %");
    };
    const std::string attention = percent(selection.attention(layer));
    absl::StrAppendFormat(
        &svg,
        "<rect class=\"tip\" x=\"%d\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"><title>layer %d: %s"
        "</title></rect>\n",
        kLeft, kTop + pitch * layer - gap / 2, inner, pitch, layer,
        two_bands ? absl::StrCat("attention ", attention, " of the rows, MLP ",
                                 percent(MlpMask(selection, layer)))
                  : absl::StrCat(attention, " of the rows"));
  }
  return svg + "</svg>\n";
}

}  // namespace lemo::train
