"""Comparison: every way to tell good from defective that the literature knows, on one split, judged by one examiner.

train part ─> learners, each with its search, threshold by validation ─> entrants ─┐
held-out part, met here for the first time ────────────────────────────────────────┴> scores ─> bootstrap ─> report

| file | what it talks about |
| --- | --- |
| images, inputs | what is read of each image, and the three forms in which learners take it |
| learning | the parts a learner may see; there is no field for the held-out part |
| contenders, backpropagation, searches | SVM, KNN, BPN, MLP and the floors, and how their settings are chosen |
| network | our CNN as an entrant, by way of a version folder |
| measures, bootstrap | figures with their intervals, alone and against the CNN |
| subsets, dimensions, suspects | scores by kind of defect or part; over growing width; doubtful labels |
| spoiling, preprocessing | spoiled images, corrected or not |
| heatmaps | where the CNN looked, and whether the defect is there |
| terms, conductor | what a comparison is told; the whole experiment in order |
| record, pictures, report | report.json, figures as PNG, and report.html, which needs nothing beside it |
| folder | where the report is written |
"""
