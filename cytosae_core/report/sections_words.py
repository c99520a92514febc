"""Every sentence of the management summary, in English and Japanese. `management.py` puts the numbers in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """The sentences of one language. Names in braces are filled in; `asked` is (at most, at least)."""

    title: str
    use: str
    watermark: str
    marks: Mapping[str, str]
    css: str
    footer: str
    no_question: str
    simulated: str
    states: Mapping[str, str]
    sentence: str
    asked: tuple[str, str]
    no_number: str
    threshold: str
    picture: str
    unknown: str
    comma: str
    labels: Mapping[str, str]
    units: Mapping[str, str]
    reported: str
    chance: Mapping[str, str]
    logged: str
    not_logged: str
    heads: Mapping[str, str]
    sent: Mapping[str, str]
    smallest: str
    profiles: Mapping[str, str]
    open_data: str
    still_data: str
    no_egress: str
    about: str
    means: Mapping[str, str]
    not_means: tuple[str, ...]
    limits: Mapping[str, str]
    next: Mapping[str, str]
    simulated_next: str
    ask: str
    contact: str
    endpoints: Mapping[str, str]


ENGLISH = Words(
    title="Summary for hospital management",
    use="Research use; not a medical device.",
    watermark="Watermark",
    marks={},
    css="",
    footer="One page from report.json; report.html has every number, its uncertainty and how to check it.",
    no_question="The study states no question.",
    simulated=" (simulated sites)",
    states={
        "generalises": "Expected to hold in a new hospital",
        "does_not_generalise": "Not shown to hold in a new hospital",
        "provisional": "Provisional: too few hospitals to conclude",
        "not_estimable": "No answer: it could not be estimated",
    },
    sentence=(
        "{name}: {value} over {sites} sites (95 % interval {low} to {high}). In a hospital that did not take part, "
        "between {new_low} and {new_high} is expected (95 % prediction interval)."
    ),
    asked=(" Agreed beforehand: at most {threshold}.", " Agreed beforehand: at least {threshold}."),
    no_number="The number that decides could not be estimated. The report says why.",
    threshold="agreed",
    picture="Short lines: hospitals. Diamond: their pooled value. Bar: where a new hospital is expected.",
    unknown="not known",
    comma=", ",
    labels={
        "sites": "Sites that reported",
        "images": "Images looked at",
        "chance": "A new hospital reaches what was agreed",
        "worst": "Lowest-performing site",
        "log": "Record of messages",
    },
    units={
        "patient": "Patients (rounded)", "slide": "Slides (rounded)", "source_file": "Source files (rounded)",
        "": "Units counted (rounded)",
    },
    reported="{reported} of {sites}",
    chance={"over": "probability over 99 %", "under": "probability under 1 %"},
    logged="kept: {size} entries that can be checked",
    not_logged="not kept",
    heads={
        "left": "What left the hospitals",
        "means": "What it means",
        "not": "What it does not mean",
        "next": "Next step",
        "ask": "Who to ask",
    },
    sent={
        "evaluate_only": "No raw image left a hospital. What left is statistics: {bytes} from {sites} sites.",
        "masked": (
            "No raw image left a hospital. What left is statistics and changes of the shared dictionary: {bytes} "
            "from {sites} sites."
        ),
        "dp": (
            "No raw image left a hospital. What left is statistics with noise added and one noisy summary: {bytes} "
            "from {sites} sites."
        ),
    },
    smallest="Numbers with fewer than {least} patients (or other units) behind them are withheld by the hospital.",
    profiles={
        "masked": "This protection is heuristic; it gives no mathematical guarantee (no differential privacy).",
        "evaluate_only": "Disclosure control lowers the risk for a person; it gives no mathematical guarantee.",
        "dp": "Differential privacy limits mathematically what can be learned of one patient.",
    },
    open_data="Disclosure control was off: the images were published before, without patient identifiers.",
    still_data="Statistics come from patients all the same: this does not say that no patient data left.",
    no_egress="The report does not record what left.",
    about=(
        "A “concept” is a pattern that a computer model sees in blood cells, such as granules. The study asks "
        "whether such patterns mean the same in another hospital."
    ),
    means={
        "generalises": "What was found is likely to hold in a hospital like these that did not take part.",
        "does_not_generalise": (
            "The hospitals differ too much, or too few numbers are sure: do not expect it to hold "
            "elsewhere."
        ),
        "provisional": "Too few hospitals could be compared to say what a new one would find; this is a first look.",
        "not_estimable": (
            "The study cannot answer its question with the data it has. This is a result about the "
            "study."
        ),
    },
    not_means=(
        "It may not be used for diagnosis or treatment, and it does not show conformity with any law or standard.",
        "It says nothing about how patients fare: concepts were compared with kinds of cells only.",
    ),
    limits={
        "simulated": "The sites were simulated on one computer: nothing here is evidence about patients.",
        "few": "Only {sites} hospitals could be compared; the plan asks for {least} before a conclusion.",
        "units": "Patients could not be told apart everywhere: the uncertainty may be larger than shown.",
        "deviations": "Deviations from the signed plan: {count} (report, section R19).",
        "drift": "Images from {sites} differ from the others beyond the agreed limit (R13).",
        "experts": "No expert has judged yet whether the concepts make medical sense.",
    },
    next={
        "generalises": (
            "Have experts review the concepts (R14), then plan a study in new hospitals with its size set "
            "beforehand."
        ),
        "does_not_generalise": (
            "Look at the weakest site and the failures (R8, R15) with pathologists before any further "
            "study."
        ),
        "provisional": "Invite further hospitals under the same signed plan; change nothing else.",
        "not_estimable": (
            "Ask the coordinator what is missing (R12, R17), and decide whether the study can be "
            "completed."
        ),
    },
    simulated_next=(
        "Repeat the study with real hospitals under the same plan; this run shows only that the "
        "procedure works."
    ),
    ask="Coordinator of the study “{study}” (protocol {digest}…); for what left: your data protection officer.",
    contact="Name, telephone:",
    endpoints={
        "transfer": "Cells named correctly in a hospital left out (balanced accuracy)",
        "transfer_gain": "Gain in balanced accuracy over the model's own features",
        "replication": "Meanings that hold in a hospital left out (share)",
        "agreement": "Agreement of meanings between hospitals (correlation)",
        "fvu": "Share of the image information that is not explained",
        "site_readable": "How often the hospital can be told from a cell",
    },
)  # fmt: skip

JAPANESE = Words(
    title="病院管理者向け要約",
    use="研究用。医療機器ではありません。",
    watermark="透かし表示",
    marks={"SIMULATED SITES": "模擬施設", "DISCLOSURE CONTROL OFF": "開示制御なし"},
    css='@page{@bottom-left{content:"研究用。医療機器ではありません。";font:8pt sans-serif;color:#56616a}}',
    footer=(
        "本書は report.json から作成した1ページの要約です。"
        "すべての数値、その不確かさ、検証方法は report.html に記載しています。"
    ),
    no_question="本研究の問いは記載されていません。",
    simulated="（模擬施設による結果）",
    states={
        "generalises": "新たな施設でも成り立つと見込まれる",
        "does_not_generalise": "新たな施設で成り立つとは示されなかった",
        "provisional": "暫定的な結果：結論には施設数が不足",
        "not_estimable": "判定不能：推定できなかった",
    },
    sentence=(
        "主要評価項目「{name}」は、{sites}施設の統合値で{value}（95%信頼区間 {low}～{high}）でした。"
        "参加していない施設での値は {new_low}～{new_high} と予測されます（95%予測区間）。"
    ),
    asked=("事前に定めた基準は {threshold} 以下です。", "事前に定めた基準は {threshold} 以上です。"),
    no_number="判定の基になる数値を推定できませんでした。理由は報告書に記載しています。",
    threshold="基準",
    picture="短い線：各施設　ひし形：統合値　帯：新たな施設で予測される範囲",
    unknown="不明",
    comma="、",
    labels={
        "sites": "結果を報告した施設",
        "images": "解析した画像数",
        "chance": "新たな施設が基準を満たす確率",
        "worst": "最も成績の低い施設",
        "log": "通信の記録",
    },
    units={
        "patient": "患者数（丸めた値）", "slide": "標本数（丸めた値）", "source_file": "元ファイル数（丸めた値）",
        "": "集計単位の数（丸めた値）",
    },
    reported="{sites}施設中 {reported}施設",
    chance={"over": "99%超", "under": "1%未満"},
    logged="あり（検証可能な記録 {size}件）",
    not_logged="なし",
    heads={
        "left": "病院の外に出たもの",
        "means": "この結果が意味すること",
        "not": "この結果が意味しないこと",
        "next": "次の段階",
        "ask": "問い合わせ先",
    },
    sent={
        "evaluate_only": (
            "画像そのものは病院の外に出ていません。送信したのは集計値のみで、"
            "{sites}施設の合計は {bytes} です。"
        ),
        "masked": (
            "画像そのものは病院の外に出ていません。送信したのは集計値と、共有する辞書（モデル）の更新値で、"
            "{sites}施設の合計は {bytes} です。"
        ),
        "dp": (
            "画像そのものは病院の外に出ていません。送信したのは雑音を加えた集計値と要約値で、"
            "{sites}施設の合計は {bytes} です。"
        ),
    },
    smallest="対象が {least}名（または{least}件）未満の数値は、病院側で送信を差し止めています。",
    profiles={
        "masked": "この保護は経験的な方法によるもので、差分プライバシーのような数学的な保証はありません。",
        "evaluate_only": "開示制御により個人が特定される危険を下げていますが、数学的な保証はありません。",
        "dp": "差分プライバシーにより、個々の患者について知り得る情報を数学的に制限しています。",
    },
    open_data="開示制御は行っていません。患者識別情報を含まない、公開済みの画像を用いたためです。",
    still_data="ただし集計値も患者に由来する情報であり、「患者データが一切出ていない」という意味ではありません。",
    no_egress="病院の外に出たものは、報告書に記録されていません。",
    about=(
        "「概念」とは、顆粒など、解析モデルが血液細胞の画像から捉える特徴を指します。"
        "本研究は、その特徴が別の病院でも同じ意味を持つかを調べたものです。"
    ),
    means={
        "generalises": "得られた結果は、参加施設と同様の、参加していない病院でも成り立つ可能性が高いと考えられます。",
        "does_not_generalise": (
            "施設間の差が大きいか、数値の確実性が不十分です。"
            "他の病院でも成り立つとは見込めません。"
        ),
        "provisional": "比較できた施設数が少ないため、新たな病院での結果はまだ述べられません。初期段階の結果です。",
        "not_estimable": "現在のデータでは、本研究の問いに答えられません。これは研究の実施状況に関する結果です。",
    },
    not_means=(
        "診断や治療に用いることはできません。また、法令や規格への適合を示すものではありません。",
        "患者の経過や治療成績との関係は調べていません。比較の対象は細胞の種類のみです。",
    ),
    limits={
        "simulated": "参加施設は1台の計算機上で模擬したものです。患者に関する根拠にはなりません。",
        "few": "比較できたのは{sites}施設です。計画では、結論に{least}施設以上を必要としています。",
        "units": "一部では患者を区別できず、実際の不確かさは表示より大きい可能性があります。",
        "deviations": "署名済みの計画からの逸脱が {count}件あります（報告書 R19）。",
        "drift": "{sites} の画像は、他施設との差が事前に定めた限度を超えています（R13）。",
        "experts": "概念が医学的に妥当かどうかについて、専門家の評価はまだ行われていません。",
    },
    next={
        "generalises": (
            ""
            "専門家による概念の評価（R14）を行い、その後、必要な症例数を事前に定めて新たな病院での研究を計画します。"
        ),
        "does_not_generalise": (
            "次の研究に進む前に、成績の低い施設と成り立たなかった概念（R8、"
            "R15）を病理医とともに検討します。"
        ),
        "provisional": "署名済みの計画を変えずに、参加病院を追加します。",
        "not_estimable": "不足しているもの（R12、R17）を研究の統括担当者に確認し、研究を完了できるかを判断します。",
    },
    simulated_next="同じ計画により、実際の病院で研究を実施します。今回示されたのは、手順が動作することのみです。",
    ask=(
        "研究「{study}」の統括担当者（研究計画書 {digest}…）。"
        "病院の外に出た情報については、貴院の個人情報保護担当者。"
    ),
    contact="担当者名・電話番号：",
    endpoints={
        "transfer": "除外した病院で細胞の種類を正しく判別できた割合（均衡正解率）",
        "transfer_gain": "モデル本来の特徴量を用いた場合との均衡正解率の差",
        "replication": "除外した病院でも同じ意味が確認された割合",
        "agreement": "病院間での意味の一致度（相関係数）",
        "fvu": "画像情報のうち説明されない割合",
        "site_readable": "細胞の画像から病院を識別できる割合",
    },
)  # fmt: skip

WORDS: Mapping[str, Words] = {"en": ENGLISH, "ja": JAPANESE}
