"""The study's tasks: models, text and rows, written once into a working directory. Standard library only.

a  reading on: a novel that the base has not seen; its last 15 % are held out
b  the same with a base that has only seen 512 positions, stretched by linear RoPE scaling
c  long prompt, short answer: facts strewn over pages of a novel, questions about them at the end
"""

import json
import random
import shutil
from pathlib import Path

# Novels that neither novelist-3m nor its tokenizer has seen (the model's own README); seed i reads the i-th.
HELD_OUT = ["Conrad_Almayer_1895", "Kipling_Kim_1901", "James_Roderick_1875", "Hardy_Jude_1895",
            "Lawrence_Women_1920", "Eliot_Felix_1866", "Morris_Water_1897", "Doyle_Micah_1889"]
# Of task c: pages to train on and others to be asked about.
PAGES_TRAIN, PAGES_EVAL = "Lawrence_Women_1920", "Eliot_Felix_1866"
HELD_OUT_SHARE = 0.15
# Of text like this under novelist-3m's tokenizer; the least over the books, so that rows fit.
CHARACTERS_A_TOKEN = 2.75
BASE_LENGTH = 512  # of the base that task b trains
FACTS = 12         # a row of task c
PASSAGE = 64       # tokens that occur twice in a document of the probe

TITLES = ["Captain", "Doctor", "Sergeant", "Sister", "Father", "Judge", "Widow", "Master"]
SURNAMES = ["Merrow", "Haldane", "Tolliver", "Quince", "Ashby", "Brandreth", "Corbet", "Dunmore", "Ewart",
            "Fenwick", "Garrick", "Hobday", "Ingram", "Jessop", "Kettle", "Larkin", "Mostyn", "Norbury",
            "Orchard", "Pellew", "Redfern", "Sallow", "Thorne", "Upjohn", "Verity", "Wardle", "Yarrow",
            "Bellamy", "Cardew", "Drummond", "Eastlake", "Farrant"]
SIGNS = ["anchor", "apple", "arrow", "barrel", "basket", "beacon", "bell", "bird", "boat", "book", "bottle",
         "bridge", "candle", "castle", "chain", "church", "cloud", "coat", "corn", "crown", "dog", "door",
         "eagle", "eye", "feather", "field", "fire", "fish", "flower", "forest", "garden", "gate", "glass",
         "gold", "grass", "hammer", "hand", "hat", "heart", "hill", "horse", "house", "iron", "island",
         "key", "kitchen", "knife", "lamp", "leaf", "letter", "lion", "mirror", "moon", "mountain", "needle",
         "ocean", "paper", "pillow", "queen", "rain", "ring", "river", "road", "rose", "salt", "sea",
         "shadow", "ship", "shoe", "silver", "snow", "soldier", "star", "stone", "storm", "sun", "sword",
         "table", "tower", "tree", "valley", "village", "wall", "water", "wheel", "window", "wine", "winter"]


def find_novels(given, root):
    """The folder of novels, or None: the example's book then stands for all of them."""
    folder = Path(given) if given else root.parent / "shared" / "data" / "datasets" / "novels"
    return folder if (folder / f"{HELD_OUT[0]}.txt").exists() else None


class Material:
    """Files of the study under `work`, each made when it is first asked for.

    What a file holds follows from its name, so a file that is there is not made again.
    """

    def __init__(self, work, root, novels):
        self.work, self.root, self.novels = work, root, novels
        self.base = root / "examples" / "models" / "novelist-3m"
        work.mkdir(parents=True, exist_ok=True)

    def _text(self, book):
        """(training text, held-out text), cut at a line."""
        if self.novels is None:
            data = self.root / "examples" / "data"
            return (data / "almayer-train.txt").read_text(), (data / "almayer-eval.txt").read_text()
        whole = (self.novels / f"{book}.txt").read_text(encoding="utf-8")
        cut = whole.index("\n", int(len(whole) * (1 - HELD_OUT_SHARE)))
        return whole[:cut], whole[cut:]

    def _write(self, name, make):
        path = self.work / name
        if not path.exists():
            scratch = path.with_suffix(".new")
            make(scratch)
            scratch.rename(path)
        return path

    def book(self, book, part):
        """One part of a novel as a plain text file: `train` or `eval`."""
        train, held_out = self._text(book)
        text = train if part == "train" else held_out
        return self._write(f"{book}-{part}.txt", lambda path: path.write_text(text))

    def training_books(self):
        """The novels that novelist-3m was trained on, for the base of task b."""
        if self.novels is None:
            raise FileNotFoundError("task b trains a base of its own and needs the folder of novels (LEMO_NOVELS)")
        return sorted(path for path in self.novels.glob("*_*.txt") if path.stem not in HELD_OUT)

    def other_books(self):
        """Text for predictors: the last of the held-out books, which no seed below its number reads."""
        return [self.book(book, "train") for book in HELD_OUT[-2:]]

    def model_with(self, name, changes=None, template=None, weights=None):
        """A copy of the base with keys of config.json, the chat template or the weights replaced."""
        def make(directory):
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            source = weights or self.base
            for path in source.iterdir():
                if path.is_file():
                    shutil.copyfile(path, directory / path.name)
            if changes:
                config = json.loads((source / "config.json").read_text())
                config.update(changes)
                (directory / "config.json").write_text(json.dumps(config, indent=1))
            if template:
                settings = json.loads((directory / "tokenizer_config.json").read_text())
                settings["chat_template"] = template
                (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
        return self._write(name, make)

    # Task c.

    def plain_model(self, weights):
        """A base with a template that only joins the messages: questions and answers go on in the
        text, as a model that knows no chat expects."""
        return self.model_with(f"{weights.name}-plain", weights=weights, template=(
            "{% for message in messages %}{{ message['content'] }}{% endfor %}"
            "{% if add_generation_prompt %}{% endif %}"))

    def lookups(self, rows, of_facts):
        """Short rows whose answers stand in them: random words (of any kind, or those of the facts) to be said
        again, and lists of facts with questions about them. novelist-3m looks nothing up, so the base of task c
        is taught to with these; loss on the answers alone, or it takes many times as long to learn it."""
        def make(path):
            draw = random.Random(6 if of_facts else 5)
            words = TITLES + SURNAMES + SIGNS if of_facts else sorted(set(self._text(PAGES_TRAIN)[0].split()))
            with path.open("w") as file:
                for row in range(rows):
                    made = copy_row(draw, words) if row % 2 else facts_row(draw)
                    file.write(json.dumps({"messages": made}) + "\n")
        return self._write(f"lookups-{rows}{'-of-facts' if of_facts else ''}.jsonl", make)

    def questions(self, part, length, rows, seed, pages_share=1.0):
        """Rows of task c. `pages_share` below 1 leaves out the beginning of the pages and the facts
        in it, as cutting the prompt to a shorter window does."""
        share = f"-{pages_share:g}" if pages_share < 1 else ""
        name = f"questions-{part}-{length}-{rows}-{seed}{share}.jsonl"

        def make(path):
            book = PAGES_TRAIN if part == "train" else PAGES_EVAL
            pages, held_out = self._text(book)
            if self.novels is None and part == "eval":
                pages = held_out
            draw = random.Random(f"{part} {seed}")
            with path.open("w") as file:
                for _ in range(rows):
                    file.write(json.dumps(question_row(draw, pages, length, pages_share)) + "\n")
        return self._write(name, make)

    # The probe.

    def probe(self, length, documents=2):
        """Documents of about `length` tokens whose last PASSAGE tokens occurred before, at each of
        probe_distances; and the same without the first occurrence. Loss is on the second one alone."""
        def make(path):
            pages = self._text(PAGES_EVAL)[0]
            draw = random.Random(length)
            passage_size = int(PASSAGE * CHARACTERS_A_TOKEN)
            size = int(length * CHARACTERS_A_TOKEN) - passage_size
            with path.open("w") as file:
                for _ in range(documents):
                    start = pages.index(" ", draw.randrange(len(pages) - 2 * size))
                    text = pages[start:start + size]
                    other = pages.index(" ", draw.randrange(len(pages) - 2 * size))
                    for distance in [0] + probe_distances(length):
                        if distance == 0:  # a passage from elsewhere
                            passage, prompt = pages[other:other + passage_size], text
                        else:
                            # The text itself supplies the passage, so nothing looks planted.
                            at = text.index(" ", max(0, size - int(distance * CHARACTERS_A_TOKEN)))
                            passage, prompt = text[at:at + passage_size], text
                        cut = passage.rindex(" ")
                        file.write(json.dumps({"prompt": prompt, "completion": passage[:cut],
                                               "distance": distance}) + "\n")
        return self._write(f"probe-{length}-{documents}.jsonl", make)


def probe_distances(length):
    distances = [256]
    while distances[-1] * 2 < length - 128:
        distances.append(distances[-1] * 2)
    return distances + [length - 160]


def asked_of(person):
    """The answer follows the name at once, so that a small model's habit of repeating what came after
    the same word last time is all that it takes."""
    return f"\nNote. {person}"


def draw_facts(draw):
    people = [f"{draw.choice(TITLES)} {name}" for name in draw.sample(SURNAMES, FACTS)]
    return list(zip(people, draw.sample(SIGNS, FACTS)))


def copy_row(draw, words):
    text = " " + " ".join(draw.choices(words, k=draw.randint(10, 60)))
    return [{"role": "user", "content": text + "\n"}, {"role": "assistant", "content": text}]


def facts_row(draw):
    facts = draw_facts(draw)[:draw.randint(2, FACTS)]
    prompt = "".join(f"{asked_of(person)} {sign}." for person, sign in facts) + "\n"
    draw.shuffle(facts)
    messages = []
    for i, (person, sign) in enumerate(facts):
        messages.append({"role": "user", "content": (prompt if i == 0 else "") + asked_of(person)})
        messages.append({"role": "assistant", "content": f" {sign}."})
    return messages


def question_row(draw, pages, length, pages_share):
    """One conversation: pages with facts and a first question, then answers and further questions."""
    facts = draw_facts(draw)
    # A fact takes some 20 tokens, and its question with the answer as many.
    size = int((length - FACTS * 46) * CHARACTERS_A_TOKEN)
    start = draw.randrange(len(pages) - 2 * size)
    text = pages[start:start + size]
    # One fact to each part of the pages, at the end of a line.
    places = []
    for i in range(FACTS):
        at = text.find("\n", int((i + draw.random()) * size / FACTS))
        places.append(at if at >= 0 else size)
    first = int(size * (1 - pages_share))
    prompt, last = "", first
    for at, (person, sign) in zip(places, facts):
        if at < first:
            continue
        prompt += text[last:at] + f"{asked_of(person)} {sign}."
        last = at
    prompt += text[last:] + "\n"
    asked = list(range(FACTS))
    draw.shuffle(asked)
    messages, distances = [], []
    for i, which in enumerate(asked):
        person, sign = facts[which]
        messages.append({"role": "user", "content": (prompt if i == 0 else "") + asked_of(person)})
        messages.append({"role": "assistant", "content": f" {sign}."})
        distances.append(round((size - places[which]) / CHARACTERS_A_TOKEN) + 14 * i)
    return {"messages": messages, "distances": distances}
