def brief(problem, response):          # a row of the task; the text of the response
    if not response.strip():
        return None                    # could not judge: left out of every mean, no advantage
    return 1.0 if len(response.split()) < 30 else 0.0
