"""Where the data come from: data sets that statsmodels and scikit-learn ship, in their own units; writes files/NAME.npz.

    python benchmarks/posteriors/sources.py     needs statsmodels and scikit-learn

Eight schools is Rubin's (Estimation in parallel randomized experiments (Rubin, 1981)).
"""

import sys
from pathlib import Path

import numpy as np

FILES = Path(__file__).parent / "files"


def table(name):
    import statsmodels.api

    return getattr(statsmodels.api.datasets, name).load_pandas().data


def columns(frame, *names):
    return frame[list(names)].to_numpy(float)


def schools():
    return {"effect": np.array([28.0, 8, -3, 7, -1, 1, 18, 12]), "error": np.array([15.0, 10, 16, 11, 9, 11, 10, 18])}


def longley():
    d = table("longley")
    return {"x": columns(d, "GNPDEFL", "GNP", "UNEMP", "ARMED", "POP", "YEAR"), "y": d["TOTEMP"].to_numpy(float)}


def diabetes():
    from sklearn.datasets import load_diabetes

    d = load_diabetes(scaled=False)
    return {"x": d.data.astype(float), "y": d.target.astype(float)}


def diabetes_by_age():
    d = diabetes()
    age, group = np.unique(d["x"][:, 0], return_inverse=True)
    return {"bmi": d["x"][:, 2], "age": age, "group": group, "y": d["y"]}


def stackloss():
    d = table("stackloss")
    return {"x": columns(d, "AIRFLOW", "WATERTEMP", "ACIDCONC"), "y": d["STACKLOSS"].to_numpy(float)}


def engel():
    d = table("engel")
    return {"income": d["income"].to_numpy(), "food": d["foodexp"].to_numpy()}


def co2():
    d = table("co2").resample("MS").mean().dropna()["1985":]
    return {"year": np.asarray(d.index.year + (d.index.month - 0.5) / 12, float), "ppm": d["co2"].to_numpy()}


def spector():
    d = table("spector")
    return {"x": columns(d, "GPA", "TUCE", "PSI"), "grade": d["GRADE"].to_numpy(float)}


def breast_cancer():
    from sklearn.datasets import load_breast_cancer

    d = load_breast_cancer(as_frame=True)
    x = columns(d.data, "mean texture", "mean smoothness", "mean area", "mean concave points")
    return {"x": x, "malignant": (d.target == 0).to_numpy(float)}


def star98():
    d = table("star98")
    x = columns(d, "LOWINC", "PERASIAN", "PERBLACK", "PERHISP", "PERMINTE", "AVYRSEXP", "AVSALK", "PERSPENK", "PTRATIO")
    return {"x": x, "above": d["NABOVE"].to_numpy(float), "pupils": (d["NABOVE"] + d["NBELOW"]).to_numpy(float)}


def star98_districts():
    d = {name: value[::3][:100] for name, value in star98().items()}
    return {**d, "x": d["x"][:, [0, 4, 5, 8]]}


def committee():
    d = table("committee")
    return {"x": columns(d, "SIZE", "SUBS", "STAFF", "PRESTIGE", "BILLS103"), "bills": d["BILLS104"].to_numpy(float)}


def doctor_visits():
    d = table("randhie")[::20]
    names = ("lncoins", "idp", "lpi", "fmde", "physlm", "disea", "hlthg", "hlthf", "hlthp")
    return {"x": columns(d, *names), "visits": d["mdvis"].to_numpy(float)}


def no_visits():
    d = doctor_visits()
    return {**d, "x": d["x"][:, [0, 1, 3, 5]]}


def anes96():
    d = table("anes96")
    return {"x": columns(d, "logpopul", "selfLR", "age", "educ", "income"), "party": d["PID"].to_numpy(int)}


def scotland():
    d = table("scotland")
    return {"x": columns(d, "COUTAX", "UNEMPF", "MOR", "ACT", "GDP", "AGE"), "yes": d["YES"].to_numpy(float) / 100}


def heart():
    d = table("heart")
    return {"age": d["age"].to_numpy(), "days": d["survival"].to_numpy(float), "died": d["censors"].to_numpy(float)}


def transplants():
    d = table("heart")
    group = (d["age"] // 3 * 3 + 1.5).to_numpy()
    age = np.unique(group)
    died, patients = (np.array([(d["censors"][group == a]).sum() for a in age]), np.array([(group == a).sum() for a in age]))
    return {"age": age, "died": died.astype(float), "patients": patients.astype(float)}


def mode_choice():
    d = table("modechoice").sort_values(["individual", "mode"])
    x = columns(d, "ttme", "invc", "invt").reshape(210, 4, 3)
    return {
        "x": x,
        "income": d["hinc"].to_numpy(float).reshape(210, 4)[:, 0],
        "choice": d["choice"].to_numpy().reshape(210, 4).argmax(1),
    }


def linnerud():
    from sklearn.datasets import load_linnerud

    return {"y": load_linnerud().target.astype(float)}


def digits():
    from sklearn.datasets import load_digits

    d = load_digits()
    x = d.data[:900]
    return {"x": x[:, x.any(0)], "odd": (d.target[:900] % 2).astype(float)}


def affairs():
    d = table("fair")[::4]
    group = np.unique(d[["occupation", "occupation_husb", "religious"]].to_numpy(), axis=0, return_inverse=True)[1]
    had = (d["affairs"] > 0).to_numpy(float)
    return {"marriage": d["rate_marriage"].to_numpy(), "years": d["yrs_married"].to_numpy(), "group": group.ravel(), "had": had}


def cancer():
    d = table("cancer")
    return {"population": d["population"].to_numpy(float), "deaths": d["cancer"].to_numpy(float)}


def fertility():
    years = np.arange(1960, 2011, 5)
    d = table("fertility")[[str(y) for y in years]].dropna()[::4][:40]
    return {"year": years.astype(float), "births": d.to_numpy(float)}


def grunfeld():
    d = table("grunfeld")
    firm = np.unique(d["firm"], return_inverse=True)[1]
    return {"value": d["value"].to_numpy(), "capital": d["capital"].to_numpy(), "firm": firm, "invest": d["invest"].to_numpy()}


def elnino():
    return {"celsius": table("elnino").to_numpy(float)[:, 1:]}


def china_smoking():
    d = table("china_smoking")
    cancer = columns(d, "smoking_no_cancer_yes", "smoking_yes_cancer_yes")
    return {"cancer": cancer, "people": cancer + columns(d, "smoking_no_cancer_no", "smoking_yes_cancer_no")}


def item_response():
    from sklearn.datasets import load_breast_cancer

    d = load_breast_cancer(as_frame=True).data
    names = ("radius", "texture", "smoothness", "compactness", "concavity", "symmetry", "fractal dimension")
    d = d[[f"mean {name}" for name in names]]
    return {"high": (d > d.median()).to_numpy(float)[::5][:100]}


def sunspots():
    return {"y": table("sunspots")["SUNACTIVITY"].to_numpy(float)}


def inflation():
    return {"y": table("macrodata")["infl"].to_numpy(float)[1:]}


def bills():
    return {"y": np.diff(table("macrodata")["tbilrate"].to_numpy(float))}


def nile():
    return {"y": table("nile")["volume"].to_numpy(float)}


def nile_process():
    return {"year": table("nile")["year"].to_numpy(float), **nile()}


def iris():
    from sklearn.datasets import load_iris

    return {"y": load_iris().data[:, 2]}


def wine():
    from sklearn.datasets import load_wine

    return {"y": load_wine(as_frame=True).data["flavanoids"].to_numpy()}


def vote():
    d = table("anes96")
    age, group = np.unique(d["age"], return_inverse=True)
    count = np.bincount(group).astype(float)
    return {"age": age, "dole": np.bincount(group, d["vote"]), "voters": count}


SOURCES = {
    "eight_schools": schools,
    "eight_schools_centred": schools,
    "inflation_arma": inflation,
    "inflation_regimes": inflation,
    "bills_garch": bills,
    "bills_volatility": bills,
    "nile_change": nile,
    "nile_level": nile,
}
"""Those whose data are shared; the others have a function of their name."""


def main():
    sys.path.insert(0, str(FILES.parent.parent))
    from posteriors import ALL

    FILES.mkdir(exist_ok=True)
    for name in ALL:
        data = SOURCES.get(name, globals().get(name))()
        np.savez_compressed(FILES / f"{name}.npz", **data)
        print(name, {key: value.shape for key, value in data.items()})


if __name__ == "__main__":
    main()
