"""The example pair's made-up world: documents, questions about them in three styles, and their answers.

Two kinds of document. Notes tell of people: who keeps what in which box, who works where as what, where each box stands. A module is
a file of small functions. Four tasks, named as data sets:

    notes_qa     one hop      "What does Anna keep?"             -> "lamp"                       qa_f1
    notes_2hop   two hops     "Where is the lamp of Anna?"       -> "the red box in the attic"   qa_f1
    notes_sum    a summary    "What is known about Anna?"        -> three sentences              rouge_l
    module_code  completion   "result = load"                    -> "(path, mode, size)"         code_sim
"""
NAMES = """Anna Ben Clara David Emma Felix Greta Henry Iris Jack Karen Leo Maria Nina Oscar Paula Quinn Rosa Sam Tara Victor Wanda Yusuf Zoe
Alice Boris Cora Diego Elena Frank Gloria Hugo Ivan Julia Kofi Laura Milo Nora Otto Petra Ravi Sofia Tomas Uma Vera Walter Xenia Yara""".split()
ITEMS = """lamp coin book ring map clock flute mirror hammer candle rope button medal kettle brush ladder wallet violin anchor compass teapot
scarf needle pearl drum stamp basket whistle helmet camera bottle pencil lantern pillow saddle bucket magnet feather marble spoon trophy
blanket goblet shovel trumpet umbrella vase wagon""".split()
COLORS = """red blue green black white yellow brown purple orange grey pink silver golden copper wooden striped plastic steel crimson violet
olive amber ivory scarlet bronze velvet leather stone paper glass cotton linen spotted checkered square round narrow heavy tiny huge
dusty shiny cracked painted folded locked broken hollow""".split()
CITIES = """Paris Rome Oslo Berlin Madrid Lisbon Vienna Prague Dublin Athens Cairo Tokyo Lima Boston Geneva Milan Turin Warsaw Seoul Havana
Quito Delhi London Zurich Bogota Hanoi Kyoto Lagos Malmo Nairobi Odessa Porto Riga Split Tunis Utrecht Venice Dakar Basel Bergen
Cologne Denver Essen Florence Ghent Helsinki Izmir Krakow""".split()
JOBS = """baker nurse pilot lawyer farmer teacher doctor painter singer waiter driver plumber tailor judge actor miner sailor gardener
librarian butcher chemist dentist guard editor banker barber carpenter cashier clerk cook dancer diver engineer fisher florist hunter
jeweler mason mechanic miller optician porter potter printer surgeon weaver welder writer""".split()
PLACES = """attic kitchen garden cellar garage hall library office bedroom tower barn chapel shed lobby balcony pantry studio corridor
basement workshop stable cottage gallery laundry nursery parlor porch vault arcade bakery bridge cabin canteen castle cave clinic courtyard
dairy dock factory forge hangar harbor hut inn market mill museum""".split()
FUNCTIONS = """load save open close read write push pull merge split sort find scan parse show draw move copy swap join trim pack fold hash
mask blend crop fill flip clip wrap bind link lock sync send call wait poll drop keep mark pick rank roll seek shift spawn""".split()
PARAMETERS = """path mode size shade width height depth name index count limit offset key value data text line start stop step scale angle
speed weight left right top bottom first last label title user group level state time date host port buffer cursor filter handle input
output query token""".split()

PLAIN, RECORD, COMPLETE = range(3)
STYLE_NAMES = ("plain", "record", "completion")
TASKS = ("notes_qa", "notes_2hop", "notes_sum", "module_code")
FRAMES = {  # task -> the text around a question, by style; {} is the question
    "notes": ("\nQuestion: {}:", "\nRecord: {} =", "\nComplete: {}"),
    "module": ("\nNext line of code:\n{}", "\nRecord: {} =", "\nComplete: {}"),
}
# task -> kind -> (the question by style, the answer by style); the answer follows the question's last character
NOTES = "{name} keeps the {item} in the {color} box. {name} works in {city} as the {job}. The {color} box stands in the {place}."
QUESTIONS = {
    "notes_qa": {
        "item": (("What does {name} keep?\nThe item of {name}", "{name} item", "{name} keeps the"), (" {item}",) * 3),
        "color": (("Which box does {name} use?\nThe box of {name}", "{name} box", "{name} keeps the {item} in the"), (" {color}",) * 3),
        "city": (("Where does {name} work?\nThe city of {name}", "{name} city", "{name} works in"), (" {city}",) * 3),
        "job": (("What does {name} work as?\nThe job of {name}", "{name} job", "{name} works in {city} as the"), (" {job}",) * 3),
        "place": (("Where does the {color} box stand?\nThe place", "{color} box place", "The {color} box stands in the"), (" {place}",) * 3),
    },
    "notes_2hop": {
        "where": (("Where is the {item} of {name}?\nThe box and the place", "{item} of {name}", "The {item} of {name} is in"), (" the {color} box in the {place}",) * 3),
    },
    "notes_sum": {
        "person": (("What is known about {name}?\nThe notes", "{name} all", "All: {name} keeps"), (" " + NOTES, " " + NOTES, NOTES[len("{name} keeps"):])),
    },
    "module_code": {
        "signature": (("result = {function}", "{function} signature", "def {function}"), ("{signature}", " {signature}", "{signature}")),
        "body": (("def {function}{signature}:\n    return", "{function} body", "def {function}{signature}:\n    return"), (" {body}",) * 3),
    },
}


def make_notes(rng, people):
    """A text about `people` persons, and their facts."""
    draw = lambda words: rng.sample(words, people)
    facts = [dict(name=n, item=i, color=c, city=t, job=j, place=p) for n, i, c, t, j, p in
             zip(draw(NAMES), draw(ITEMS), draw(COLORS), draw(CITIES), draw(JOBS), draw(PLACES))]
    sentences = [s for f in facts for s in (f"{f['name']} keeps the {f['item']} in the {f['color']} box.",
                                            f"{f['name']} works in {f['city']} as the {f['job']}.",
                                            f"The {f['color']} box stands in the {f['place']}.")]
    rng.shuffle(sentences)
    return "Notes: " + " ".join(sentences), facts


def make_module(rng, functions):
    """A text of `functions` small functions, and their facts."""
    facts = []
    for name in rng.sample(FUNCTIONS, functions):
        parameters = rng.sample(PARAMETERS, rng.choice((2, 3)))
        body = rng.sample(parameters, 2)
        facts.append(dict(function=name, signature="(" + ", ".join(parameters) + ")", body=" + ".join(body)))
    return "Module:\n" + "\n".join(f"def {f['function']}{f['signature']}:\n    return {f['body']}" for f in facts), facts


def make_document(rng, size, module):
    return (make_module if module else make_notes)(rng, size)


def make_question(fact, task, kind, style):
    """What follows the context, and the answer as it follows that."""
    ask, answer = QUESTIONS[task][kind]
    frame = FRAMES["module" if "function" in fact else "notes"][style]
    return frame.format(ask[style].format(**fact)), answer[style].format(**fact)


def make_questions(rng, facts, count, styles):
    """`count` questions about one document as (question, answer, task, style): one in eight of them a summary (they are long)."""
    kinds = [(t, k) for t, ks in QUESTIONS.items() for k in ks if (t == "module_code") == ("function" in facts[0])]
    weights = [{"notes_2hop": 2.5, "notes_sum": 1.2}.get(t, 1) for t, _ in kinds]
    out = []
    for fact, (task, kind) in zip(rng.choices(facts, k=count), rng.choices(kinds, weights, k=count)):
        style = rng.choice(styles)
        out.append((*make_question(fact, task, kind, style), task, style))
    return out
